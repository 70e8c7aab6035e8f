"""Headers of safetensors files that are nearly right: legal ones spoiled byte by byte, value by value and entry by entry, and
splices of the fuzzer's corpus. Everything follows from the random.Random that is handed in.
"""
import copy
import json
import struct

ITEM_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}
NAMES = ["w", "layer.0.weight", "", "é", "€uro", "😀", 'quo"te', "back\\slash", "line\nbreak", "tab\t", "/", "\x7f", "\u2028",
         "dtype", "__metadata__ ", "a" * 300]
SPLICES = [b"", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"0", b"-", b"+1", b".", b"e5", b"1e999", b"00", b"0x1",
           b"null", b"true", b"NaN", b"Infinity", b" ", b"\t\r\n", b"\x0b", b"\xc2\xa0", b"\0", b"\n", b"\xff", b"\xed\xa0\x80",
           b"\\u0000", b"\\ud800", b"\\udc00", b"\\ud83d\\ude00", b"\\u00E9", b"\\/", b"\\x", b"18446744073709551616",
           b"18446744073709551615", b"4294967296", b"9223372036854775808", b"1.0", b"0.0", b"-0", b"1E0",
           b'"__metadata__":{},', b'"__metadata__":{"a":"b"},', b'"\\u005f_metadata__":null,',
           b'"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},', b'"x":["U8",[0],[0,0]],', b'"dtype":"U8",',
           b'"dtyp\\u0065":"U8",',
           b'"y":[[{}]],', b'"y":-0.0e-0,', b'"y":' + b"[" * 126 + b"]" * 126 + b",", b'"y":' + b"[" * 130 + b"]" * 130 + b",",
           b"F32", b"F4", b"f32", b"[" * 200, b"\xc3\xa9", b"\xef\xbb\xbf", b"//", b"/**/", b"'"]
HUGE = [1 << 31, (1 << 32) - 1, 1 << 32, (1 << 53) + 1, 1 << 61, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, -1]
ODD_VALUES = [None, True, 0, -1, 1.0, 0.0, -0.0, 1e300, "", "U8", "F32", [], [0], [0, 0], {}, {"U8": None}, [[]], {"a": [1.5]},
              "\u0000", ["U8", [0], [0, 0]]]


def file_of(text, data=b""):
    return struct.pack("<Q", len(text)) + text + data


def legal_header(chance):
    """A legal header as a list of pairs, and its data."""
    pairs, end = [], 0
    for number in range(chance.randrange(6)):
        dtype = chance.choice(list(ITEM_BITS))
        shape = [chance.choice([0, 1, 2, 3, 5, 8]) for _ in range(chance.randrange(4))]
        bits = ITEM_BITS[dtype]
        for extent in shape:
            bits *= extent
        if bits % 8:
            dtype, shape, bits = "U8", [3], 24
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + bits // 8]}
        pairs.append((chance.choice(NAMES) + str(number), entry))
        end += bits // 8
    chance.shuffle(pairs)
    if chance.random() < 0.4:
        pairs.insert(chance.randrange(len(pairs) + 1),
                     ("__metadata__", {chance.choice(NAMES): chance.choice(NAMES) for _ in range(chance.randrange(3))}))
    return pairs, chance.randbytes(end)


def as_text(chance, pairs):
    """One of the many ways to write the same JSON; keys may come twice."""
    style = {"ensure_ascii": chance.random() < 0.5, "separators": chance.choice([(",", ":"), (", ", " : ")])}
    members = [f"{json.dumps(key, **style)}{style['separators'][1]}{json.dumps(value, **style)}" for key, value in pairs]
    text = chance.choice(["", "", " ", "\n\t"]) + "{" + style["separators"][0].join(members) + "}" + " " * chance.randrange(9)
    return text.encode("utf-8", "surrogatepass")


def spoil_values(chance, pairs):
    """Another value, another shape, an entry twice, a member left out: still JSON."""
    pairs = copy.deepcopy(pairs)
    for _ in range(chance.choice([1, 1, 2])):
        if not pairs:
            break
        at = chance.randrange(len(pairs))
        key, value = pairs[at]
        what = chance.randrange(9)
        member = chance.choice(list(value)) if isinstance(value, dict) and value else None
        if what == 0:
            pairs[at] = (key, chance.choice(ODD_VALUES))
        elif what == 1:
            pairs.insert(chance.randrange(len(pairs) + 1), (key, copy.deepcopy(chance.choice(pairs)[1])))
        elif what == 2:
            pairs[at] = (chance.choice(["__metadata__", "\ud800", "a\u0000b", *NAMES]), value)
        elif what == 3:
            pairs.append(("extra", {"dtype": "U8", "shape": [chance.choice(HUGE), 0], "data_offsets": [0, 0]}))
        elif member is None:
            pairs.pop(at)
        elif what == 4:
            value.pop(member)
        elif what == 5:
            value[member] = chance.choice(ODD_VALUES)
        elif what == 6:
            value[chance.choice(["note", "dtype ", "Shape", ""])] = chance.choice(ODD_VALUES)
        elif isinstance(value[member], list) and value[member]:
            value[member][chance.randrange(len(value[member]))] = chance.choice(HUGE + [0, 1, 2, 3, 1.0, "1", None, [1]])
        elif what == 7:
            value["shape"] = [1] * chance.choice([63, 64, 65, 66])
        else:
            value["dtype"] = chance.choice([*ITEM_BITS, "F33", "U8 ", "\u0055\u0038", ""])
    return pairs


def spoil_bytes(chance, text, others):
    text = bytearray(text)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        at, what = chance.randrange(len(text) + 1), chance.randrange(8)
        if what == 0 and at < len(text):
            text[at] = chance.randrange(256)
        elif what == 1:
            del text[at:at + chance.randrange(1, 5)]
        elif what == 2:
            text[at:at] = chance.choice(SPLICES)
        elif what == 3:
            text[at:at + chance.randrange(1, 4)] = chance.choice(SPLICES)
        elif what == 4:
            digits = [i for i, byte in enumerate(text) if 48 <= byte <= 57]
            if digits:
                text[chance.choice(digits)] = 48 + chance.randrange(10)
        elif what == 5:
            begin = chance.randrange(len(text) + 1)
            text[at:at] = text[begin:begin + chance.randrange(60)]
        elif what == 6:
            other = chance.choice(others)
            begin = chance.randrange(len(other) + 1)
            text[at:] = other[begin:]
        else:
            letters = [i for i, byte in enumerate(text) if 97 <= byte <= 122]
            if letters:
                letter = chance.choice(letters)
                text[letter:letter + 1] = b"\\u%04x" % text[letter]
    return bytes(text)


def spoil_frame(chance, text, data):
    file, length = file_of(text, data), len(text)
    what = chance.randrange(20)
    if what == 0:
        return file[:chance.randrange(len(file) + 1)]
    if what == 1:
        return file + b"\0"
    if what == 2:
        return struct.pack("<Q", chance.choice([0, 1, 2, length + 1, max(length - 1, 0), 1 << 63, 100_000_001])) + file[8:]
    if what == 3 and data:
        return file[:-1]
    return file


def text_of(file):
    length = struct.unpack("<Q", file[:8].ljust(8, b"\0"))[0]
    return file[8:8 + min(length, len(file))]


def mutant(chance, corpus):
    """One file. `corpus`: files that were interesting before."""
    texts = [text_of(file) for file in chance.sample(corpus, 1)] or [b"{}"]
    if chance.random() < 0.25:
        text, data = texts[0], b""
        file = chance.choice(corpus)
        if text == text_of(file):
            data = file[8 + len(text):]
        return spoil_frame(chance, spoil_bytes(chance, text, texts), data)
    pairs, data = legal_header(chance)
    kind = chance.random()
    if kind < 0.5:
        pairs = spoil_values(chance, pairs)
    text = as_text(chance, pairs)
    if kind > 0.4:
        text = spoil_bytes(chance, text, texts)
    return spoil_frame(chance, text, data) if kind > 0.1 else file_of(text, data)
