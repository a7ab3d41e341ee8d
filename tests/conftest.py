"What the tests share"
import os
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE') # a thread that waits for another one sleeps; it is read when torch is imported
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1') # NumPy's threads wait busily: on small matrices they cost ten times what they do
from pathlib import Path

import pytest
import torch


def needs_data(*folders):
    "Mark a test that needs real data, and skip it, saying why, unless `$DLCOURSE_DATA` holds each of `folders`"
    root = os.environ.get('DLCOURSE_DATA')
    missing = [o for o in folders if not (root and (Path(root)/o).exists())]
    skip = pytest.mark.skipif(bool(missing), reason=f"real data not found: $DLCOURSE_DATA has no {', '.join(missing)}")
    return lambda test: pytest.mark.realdata(skip(test))


@pytest.fixture(autouse=True)
def same_number_of_threads():
    "Fail a test that leaves torch's number of threads changed, and put the number back for the next one"
    before = torch.get_num_threads()
    yield
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == before, f"this test left torch with {after} threads, and found {before}: use `with num_threads(n):`"


@pytest.fixture(autouse=True)
def no_proxy_to_this_machine(monkeypatch):
    "Servers that a test starts are on this machine, so that no proxy stands between, whatever the environment says"
    for k in ('no_proxy', 'NO_PROXY'): monkeypatch.setenv(k, '127.0.0.1,localhost')
