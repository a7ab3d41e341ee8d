"Which images are chosen: equalities and bad input"
import json
import time

import numpy as np
import pytest
import torch
from dlcourse.core import CourseError
from dlcourse.data.sampling import (Selection, as_labels, choose_classes, class_counts, class_number, class_weights, imbalance,
    imbalance_counts, label_noise, long_tail, n_per_class, oversample, pick, renumber, share_out, stratified_split, valid_counts)

vocab = ['cat', 'dog', 'frog', 'ship']
y = np.random.default_rng(0).integers(0, 4, 1000)


def fails(words, f, *args, **kwargs):
    "`f` raises a `CourseError` of one line that has `words`"
    with pytest.raises(CourseError) as e: f(*args, **kwargs)
    assert words in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('labels', [[0., 1.], [[0, 1]], ['cat'], [], [-1, 0], [0, 4]])
def test_labels_that_are_none(labels): fails('', as_labels, np.array(labels), vocab)


def test_labels_from_tensors_and_lists():
    for o in (y.tolist(), torch.tensor(y), y.astype(np.uint8)): assert class_counts(o, vocab).sum() == 1000


@pytest.mark.parametrize('c', ['bird', 4, -1, 1.5, None, '9'])
def test_unknown_class(c): fails('unknown class', class_number, c, vocab)


def test_names_that_are_digits_come_before_numbers():
    assert class_number('7', ['3', '7']) == 1
    assert class_number('1', vocab) == 1


@pytest.mark.parametrize('classes', [[], ['cat'], 'cat', ['cat', 'cat'], ['cat', 0]])
def test_fewer_than_two_classes(classes): fails('at least two', choose_classes, y, classes, vocab)


def test_order_of_classes_is_kept():
    idx, new = choose_classes(y, ['ship', 'cat'], vocab)
    assert new == ['ship', 'cat']
    assert (renumber(y, vocab, new)[idx] == np.where(y[idx] == 3, 0, 1)).all()
    assert (np.delete(renumber(y, vocab, new), idx) == -1).all()


@pytest.mark.parametrize('n', [0, -1, 2.5, None, '3'])
def test_n_per_class_that_is_none(n): fails('whole number from 1', n_per_class, y, n)


def test_more_than_there_is_names_the_class():
    few = np.repeat([0, 1, 2, 3], [9, 3, 9, 9])
    fails("class 'dog' has 3 images", n_per_class, few, 5, vocab=vocab)
    fails("class 'dog' has 3 images", imbalance, few, {'dog': 4}, vocab=vocab)
    fails("class 'ship' has 0 images", n_per_class, few[:21], 2, vocab=vocab)


def test_every_image_is_as_likely():
    seen = sum(np.isin(np.arange(40), pick(np.arange(40) % 2, [5, 10], seed)) for seed in range(400))
    assert abs(seen[::2].mean() - 100) < 1e-9 and seen[::2].std() < 15 and seen[1::2].std() < 15


@pytest.mark.parametrize('spec', [0, -3, float('nan'), {'dog': 0}, {'dog': -1}, {'dog': 1.5}, {'dog': 'all'}, {'bird': 3}, [1, 2, 3], {'dog': True}, True])
def test_imbalance_that_is_none(spec): fails('', imbalance, y, spec, vocab=vocab)


def test_profile_starts_at_the_largest_class():
    assert long_tail([100, 400, 200], 4).tolist() == [100, 400, 200]
    assert long_tail([50, 400, 400], 100).tolist() == [4, 400, 40]
    assert long_tail([300]*4, 1).tolist() == [300]*4
    fails('leaves the smallest class no image', long_tail, [50, 50], 100)


def test_counts_and_fractions():
    assert imbalance_counts([10, 10, 10], [1, 1., 0.25]).tolist() == [1, 10, 2]
    assert imbalance_counts([10, 10], {'1': 0.01}).tolist() == [10, 1]


@pytest.mark.parametrize('p', [0, 0.1, 0.333, 1])
def test_exactly_that_many_labels_are_wrong(p):
    new, wrong = label_noise(y, p, 4, seed=5)
    assert wrong.sum() == round(p*1000) and (wrong == (new != y)).all() and new.min() >= 0 and new.max() < 4


def test_label_noise_is_symmetric():
    new, wrong = label_noise(np.zeros(30_000, int), 1, 4)
    assert abs(np.bincount(new)[1:] - 10_000).max() < 300


@pytest.mark.parametrize('p', [-0.1, 1.1, float('nan')])
def test_label_noise_out_of_range(p): fails('0 to 1', label_noise, y, p)


@pytest.mark.parametrize('valid', [0., 1., -0.2, 1.2, 0, 1000, 1001, True, 'a', None])
def test_split_that_is_none(valid): fails('validation part', stratified_split, y, valid)


@pytest.mark.parametrize('valid', [0.1, 0.25, 137, 4])
def test_split_is_whole_and_proportional(valid):
    train, val = stratified_split(y, valid)
    n = valid if isinstance(valid, int) else round(valid*1000)
    assert len(val) == n and sorted([*train, *val]) == list(range(1000)) and train.dtype == val.dtype == np.int64
    assert abs(np.bincount(y[val]) - np.bincount(y)*n/1000).max() < 1


def test_every_class_is_on_both_sides():
    for have in ([500, 2], [500, 2, 2, 2], [2, 2, 2]):
        for part in (0.1, 0.5, 0.9):
            labels, n = np.repeat(range(len(have)), have), max(len(have), round(part*sum(have)))
            if n > sum(have) - len(have): continue
            take = valid_counts(have, n)
            assert take.sum() == n and (take >= 1).all() and (take < have).all()
            assert (np.bincount(labels[stratified_split(labels, n)[1]]) == take).all()


def test_a_class_that_cannot_be_split():
    fails("class 'dog' of 1", stratified_split, [0]*9 + [1], 0.5, vocab=vocab)
    fails('would have none for validation', stratified_split, y, 2)
    fails('would have none for training', stratified_split, y, 998)


def test_shares_add_up():
    rng = np.random.default_rng(1)
    for _ in range(50):
        counts = rng.integers(0, 100, 7) + [1, 0, 0, 0, 0, 0, 0]
        total = int(rng.integers(0, counts.sum() + 1))
        got = share_out(total, counts)
        assert got.sum() == total and (got <= counts).all() and abs(got - total*counts/counts.sum()).max() < 1


def test_float_targets_are_split_plainly():
    train, val = stratified_split(np.linspace(0, 1, 506), 102)
    assert len(train) == 404 and len(val) == 102 and not set(train) & set(val)


def test_repairs():
    labels = np.repeat([0, 1, 2], [50, 7, 1])
    even = oversample(labels)
    assert np.bincount(labels[even]).tolist() == [50]*3
    times = np.bincount(even)
    assert set(times[50:57]) == {7, 8} and (times >= 1).all()
    assert (oversample(labels, [3, 55, 56]) < 58).all() and set(oversample(labels, [3, 55, 56])) == {3, 55, 56}
    fails('class 3 has no image', class_weights, labels, 4)
    assert class_weights(labels).dtype == torch.float32


def test_seeds():
    for f in (lambda s: n_per_class(y, 10, s), lambda s: imbalance(y, 10, s), lambda s: label_noise(y, 0.3, 4, s)[0],
              lambda s: stratified_split(y, 0.2, s)[1], lambda s: oversample(np.sort(y), seed=s)):
        assert (f(1) == f(1)).all() and not np.array_equal(f(1), f(2))


def test_nothing_given_is_changed():
    kept = y.copy()
    Selection(classes=['cat', 'dog'], n_per_class=20, imbalance=2, label_noise=0.5).apply(y, vocab)
    assert (y == kept).all()


def test_all_at_once():
    got = Selection(classes=['ship', 'cat'], n_per_class=100, imbalance=[1., 40], label_noise=0.25, valid=0.25, seed=3).apply(y, vocab)
    assert got.vocab == ['ship', 'cat'] and got.counts.train.tolist() == [75, 30] and got.counts.valid.tolist() == [25, 10]
    assert got.wrong.sum() == got.counts.wrong.sum() == 26 and not got.wrong[got.valid_idx].any()
    true = np.where(y == 3, 0, 1)
    assert (got.y[got.valid_idx] == true[got.valid_idx]).all() and ((got.y != true)[got.train_idx] == got.wrong[got.train_idx]).all()


def test_noise_does_not_change_what_is_chosen():
    clean, noisy = (Selection(n_per_class=100, label_noise=p).apply(y, vocab) for p in (0, 0.4))
    assert (clean.train_idx == noisy.train_idx).all() and (clean.valid_idx == noisy.valid_idx).all()


def test_named_validation_images():
    got = Selection(n_per_class=30, valid=np.arange(100)).apply(y, vocab)
    assert (got.valid_idx == np.arange(100)).all() and len(got.train_idx) == 120 and got.train_idx.min() >= 100
    fails('0 to 999', Selection(valid=[1000]).apply, y, vocab)
    fails('0 to 999', Selection(valid=[0.5]).apply, y, vocab)
    fails('named twice', Selection(valid=[3, 3]).apply, y, vocab)
    fails("class 'cat' has no training image", Selection(valid=np.flatnonzero(y == 0)).apply, y, vocab)


def test_no_validation():
    for none in (0, None, []): assert len(Selection(valid=none).apply(y, vocab).train_idx) == 1000


def test_one_class_is_not_enough(): fails('at least two', Selection().apply, np.zeros(10, int), ['cat'])


def test_float_targets():
    got = Selection(valid=102).apply(np.linspace(5, 50, 506))
    assert got.vocab is None and len(got.valid_idx) == 102
    for o in (dict(classes=[0, 1]), dict(n_per_class=3), dict(imbalance=10), dict(label_noise=0.1)):
        fails('needs classes', Selection(**o).apply, np.linspace(5, 50, 506))


@pytest.mark.parametrize('request_', [dict(), dict(classes=('cat', 3)), dict(imbalance={0: 0.5, 'dog': 7}), dict(imbalance=np.array([3, 4, 5, 6])),
                                      dict(valid=torch.arange(5)), dict(valid=np.float64(0.3)), dict(n_per_class=np.int64(9), imbalance=(1., 4, 5, 6))])
def test_request_through_json(request_):
    sel = Selection(**request_)
    back = Selection.from_dict(json.loads(json.dumps(sel.to_dict())))
    assert back == sel
    assert (back.apply(y, vocab).train_idx == sel.apply(y, vocab).train_idx).all()


def test_what_it_says():
    got = Selection(n_per_class=100, label_noise=0.1, valid=list(range(500))).apply(y, vocab)
    assert '40 with a wrong label' in str(got) and '<500 positions>' in str(got) and 'ship' in str(got)


def test_a_million_labels():
    million = np.random.default_rng(0).integers(0, 10, 1_000_000)
    start = time.process_time()
    stratified_split(million, 0.2)
    assert time.process_time() - start < 0.5 # 0.04 s where nothing else runs
