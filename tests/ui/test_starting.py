import gc
import subprocess
import sys

import pytest

from numprune.ui.starting import uncollected

CODE = """
import sys
import numprune.ui
import gradio
import gradio.component_meta as meta
stubs = []
meta.Path.write_text = lambda *args, **options: stubs.append(args)
class Own(gradio.Textbox):
    EVENTS = []
assert meta.create_or_modify_pyi.__module__ == "numprune.ui.starting", meta.create_or_modify_pyi
assert not stubs
assert not [finder for finder in sys.meta_path if type(finder).__module__ == "numprune.ui.starting"]
with gradio.Blocks() as page:
    gradio.Textbox().change(lambda text: text, None, None)
print(gradio.Textbox.__name__, len(page.fns))
"""


def test_gradio_is_imported_without_writing_stubs():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split() == ["Textbox", "1"], done.stderr


def test_gradio_that_is_imported_already_is_left_alone():
    code = "import sys, gradio; before = list(sys.meta_path); import numprune.ui; assert before == sys.meta_path"
    subprocess.run([sys.executable, "-c", code], timeout=300, check=True)


def test_garbage_is_collected_again_whatever_happens():
    def fail():
        with uncollected():
            seen.append(gc.isenabled())
            raise ValueError("meanwhile")

    seen = [gc.isenabled()]
    with pytest.raises(ValueError, match="meanwhile"):
        fail()
    gc.unfreeze()
    assert [*seen, gc.isenabled()] == [True, False, True]
