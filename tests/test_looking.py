"Looking inside a network: measures by hand, what is refused, quick trials"
import sys

import pytest, torch
from torch import nn
from dlcourse.core import CourseError
from dlcourse.course.experiment import NotMeasured, Trial, reproduce
from dlcourse.course.mac import looking
from dlcourse.insight.explain import Explanation
from dlcourse.training.learner import learner_for


def quick(variant): return Trial(variant, 1, False, 'cpu')


@pytest.fixture(scope='module')
def cnn(): return looking.train_network(quick('ink'), 'cnn')


def explanation(images, maps, preds, targets):
    classes = torch.tensor([preds])
    return Explanation('Grad-CAM', 'layer', images, ['predicted'], classes, maps[None], torch.rand(len(preds), 2), torch.tensor(targets), ['a', 'b'])


def test_networks_of_one_size():
    mlp, cnn = (looking.untrained_learner(quick(o), o).model for o in looking.architectures)
    sizes = [sum(p.numel() for p in o.parameters()) for o in (mlp, cnn)]
    assert abs(sizes[0]/sizes[1] - 1) < 0.02
    with pytest.raises(CourseError, match="Did you mean 'cnn'"): looking.untrained_learner(quick('cn'), 'cn')


def test_heat_on_the_ink_and_beside_it():
    images, maps = torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4)
    images[0, 0, 0], images[1, 0, 3] = 1, 1 # the first row is ink, the last row is
    maps[:, 0] = 1
    table = looking.ink_shares(explanation(images, maps, [0, 1], [0, 0]))
    assert table.on_ink.tolist() == [1, 0] and table.on_other_ink.tolist() == [0, 1] and table.ink.tolist() == [0.25, 0.25]
    assert table.right.tolist() == [True, False]


def test_images_without_heat_are_counted_apart():
    images, maps = torch.ones(4, 1, 2, 2), torch.ones(4, 2, 2)
    maps[3] = 0
    found = looking.by_answer(looking.ink_shares(explanation(images, maps, [0, 0, 1, 1], [0, 0, 0, 1])))
    assert found['no_evidence'] == 0.25 and found['test_accuracy'] == 0.75
    assert found['on_ink'] == found['on_ink_right'] == found['on_ink_wrong'] == 1


def test_chunks_make_no_difference(cnn):
    whole, parts = looking.evidence(cnn, 60, chunk=60), looking.evidence(cnn, 60, chunk=20)
    assert whole.right.equals(parts.right) and torch.allclose(torch.tensor(whole.on_ink), torch.tensor(parts.on_ink), equal_nan=True, atol=1e-5)


def test_last_hidden_layer_feeds_the_last_linear_one(cnn):
    from dlcourse.insight.embedding import activations
    name = looking.last_hidden(cnn)
    acts = activations(cnn, [name, 'head.out'], n=50, pool=False)
    out = cnn.model.head.out(torch.tensor(acts.features[name]))
    assert torch.allclose(out.detach(), torch.tensor(acts.features['head.out']), atol=1e-4)


def test_last_hidden_layer_needs_one(cnn):
    flat = learner_for(nn.Sequential(nn.Conv2d(1, 10, 28), nn.Flatten()), cnn.dls)
    with pytest.raises(CourseError, match='no hidden layer'): looking.last_hidden(flat)


def test_looking_leaves_the_learner_as_it_was(cnn):
    before, rng = {k: v.clone() for k,v in cnn.model.state_dict().items()}, torch.get_rng_state()
    cnn.model.train()
    looking.last_hidden(cnn), looking.evidence(cnn, 20), looking.separation(cnn, 100)
    assert all(torch.equal(v, before[k]) for k,v in cnn.model.state_dict().items()) and torch.equal(rng, torch.get_rng_state())
    assert all(m.training and not m._forward_hooks for m in cnn.model.modules())


def test_captum_agrees(cnn):
    pytest.importorskip('captum')
    found = looking.captum_difference(cnn, 10)
    x, classes = looking.image_batch(cnn, range(10), 'test')[0], torch.tensor([[0]*10, [1]*10])
    theirs, (ours, _) = looking.captum_maps(cnn.model, x, classes, 'body.block3.act'), looking.cam_maps(cnn.model, x, classes.flip(0), 'body.block3.act')
    assert (ours - theirs).abs().max() > 1e-4 # another class has other maps
    assert 0 < found['largest_value'] and found['largest_difference'] <= 1e-4*min(1, found['largest_value'])


def test_without_captum_one_part_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'captum.attr', None)
    ink, captum = reproduce('mac-4e', folder=tmp_path, variants=['ink', 'captum'])['rows']
    assert 'figures' in ink and 'pip install captum' in captum['not_measured'] and 'figures' not in captum
    with pytest.raises(NotMeasured): looking.captum_maps(nn.Identity(), torch.zeros(1, 1, 2, 2), torch.zeros(1, 1), '')


def test_quick_separation(tmp_path):
    record = reproduce('mac-4c-layers', folder=tmp_path)
    assert [r['variant'] for r in record['rows']] == ['mlp', 'cnn']
    for r in record['rows']:
        f = r['figures']
        assert {f'{o}_{k}' for o in ('input', 'hidden') for k in looking.scores} <= f.keys()
        assert -1 <= f['hidden_silhouette'] <= 1 and 0 <= f['hidden_probe'] <= 1 and sum(map(sum, f['confusion'])) == 1000
