"""tests/support/header_tool.c as a Python object: whole files in, answers out."""
import struct
import subprocess


class Tool:
    """One header_tool process that answers many files."""

    def __init__(self, program, mode):
        self.process = subprocess.Popen([program, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, file):
        self.process.stdin.write(struct.pack("<I", len(file)) + file)
        self.process.stdin.flush()
        (size,) = struct.unpack("<I", self.read(4))
        return self.read(size)

    def read(self, size):
        answer = self.process.stdout.read(size)
        assert len(answer) == size, f"header_tool died: {self.process.wait()}"
        return answer

    def close(self):
        self.process.stdin.close()
        assert self.process.wait() == 0
        self.process.stdout.close()
