import ctypes
import subprocess
import sys
import threading

import pytest

from numprune import heap

THREADS = """
import ctypes, sys, threading
from numprune.heap import few_heaps
if sys.argv[2] == "few":
    few_heaps()
together = threading.Barrier(8)
def work():
    together.wait()
    kept = [bytearray(3000) for _ in range(100)]
    together.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_all_threads_of_a_server_share_a_few_heaps(tmp_path):
    found = {}
    for how in ("many", "few"):
        file = tmp_path / how
        subprocess.run([sys.executable, "-c", THREADS, file, how], timeout=60, check=True)
        found[how] = file.read_text().count("<heap ")
    assert found["few"] <= 2 < found["many"]


def test_memory_is_given_back_at_once_and_once_more_when_nobody_asks_again(monkeypatch):
    given, again = [], threading.Event()

    def give_back():
        given.append(threading.current_thread())
        if given[-1] is not threading.main_thread():
            again.set()

    monkeypatch.setattr(heap, "give_back", give_back)
    ask = heap.GiveBack(later=0.2)
    for _ in range(3):
        ask()
    assert again.wait(20)
    assert not threading.Event().wait(0.4)
    assert len(given) == 4
