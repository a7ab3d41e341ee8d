"The lowest floor: names, seeds, threads, files and locks"
import random, sys

import numpy as np
import pytest
import torch
from filelock import Timeout

from dlcourse import models
from dlcourse.core import CourseError, choose, import_all, kept_rng, lock_for, num_threads, optional, seed_all, whole_file


def drawn(): return random.random(), np.random.rand(), torch.rand(1).item()


@pytest.mark.parametrize('name', ['fashion_mnist', 'Fashion-MNIST', 'FASHION_mnist'])
def test_choose_ignores_case_and_dashes(name): assert choose(name, ['mnist', 'fashion_mnist']) == 'fashion_mnist'


@pytest.mark.parametrize('name, message', [('mnst', "unknown data set 'mnst'. Did you mean 'mnist'?"),
                                           (3, 'unknown data set 3. There are: mnist'),
                                           ('', "unknown data set ''. There are: mnist")])
def test_choose_refuses(name, message):
    with pytest.raises(CourseError) as e: choose(name, ['mnist'], 'data set')
    assert str(e.value).startswith(message)


def test_a_missing_extra_is_named():
    with pytest.raises(CourseError, match=r"pip install 'dlcourse\[docs\]'"): optional('no_such_module', 'docs')


def test_seeds_and_kept_generators():
    seed_all(5)
    first = drawn()
    seed_all(5)
    with kept_rng(): drawn()
    assert drawn() == first


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), num_threads(1): raise KeyError
    assert torch.get_num_threads() == before


def test_a_file_is_whole_or_absent(tmp_path):
    with pytest.raises(KeyError), whole_file(tmp_path/'a.txt') as f: raise KeyError
    assert list(tmp_path.iterdir()) == []
    with whole_file(tmp_path/'new'/'a.txt') as f: f.write('whole')
    assert (tmp_path/'new'/'a.txt').read_text() == 'whole'
    with pytest.raises(CourseError, match='cannot write'), whole_file(tmp_path/'new'/'a.txt'/'b'): pass


def test_one_holder_of_a_lock(tmp_path):
    with lock_for(tmp_path):
        with pytest.raises(Timeout): lock_for(tmp_path/'.').acquire(timeout=0)
    lock_for(tmp_path).acquire(timeout=0).lock.release()


def test_every_module_of_a_package_is_imported():
    import_all(models)
    assert {'dlcourse.models.cnn', 'dlcourse.models.whitened'} <= sys.modules.keys()
