"""The examples of docs/PYTHON.md, in their order, each in the same interpreter."""

import pathlib
import re

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "PYTHON.md"


def test_the_examples_run(root):
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(examples) >= 6
    names = {"root": str(root)}
    for number, example in enumerate(examples):
        exec(compile(example, f"PYTHON.md, example {number + 1}", "exec"), names)
