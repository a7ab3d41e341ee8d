"Values at the door: every public function, every parameter, bad values of each kind; none of them reaches the function"
import inspect, math, sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

import dlcourse
from dlcourse import all as students
from dlcourse.core import import_all, put_rng_states, rng_states, save_figure, take_lock
from dlcourse.course.records import differences_to, mean_line
from dlcourse.course.shares import in_turn
from dlcourse.data.arrays import holdout
from dlcourse.data.core_sets import covering_radius
from dlcourse.data.download import download
from dlcourse.data.loader import renormalized
from dlcourse.data.pixels import to_bytes
from dlcourse.data.sampling import class_number, imbalance, index_split, renumber
from dlcourse.files import with_checksum
from dlcourse.insight.alignment import cka
from dlcourse.insight.calibration import best_temperature
from dlcourse.insight.evaluation import Evaluation, scores_by_class
from dlcourse.insight.explain import cam_maps
from dlcourse.insight.layers import map_size
from dlcourse.insight.outputs import class_probabilities
from dlcourse.insight.resolution import cost_at
from dlcourse.provenance import commit_and_changes, git
from dlcourse.training.ensembles import EnsembleNet
from dlcourse.training.transfer import feature_table
from dlcourse.values.door import CourseError, check_calls, checked, parameters_of
from dlcourse.values.kinds import Limits, choices_of, in_words, limits_of, shapes_of

nan, inf = math.nan, math.inf
trained = SimpleNamespace(model=torch.nn.ReLU(), dls=SimpleNamespace(loaders=[]), fit=None) # as much of a `Learner` as a door looks at
ROOMS = ('core', 'provenance', 'files', 'data', 'models', 'training', 'insight', 'report')
import_all(dlcourse)
OURS = {k: m for k,m in sorted(sys.modules.items()) if k.startswith('dlcourse.')}
MODULES, PAGES = ({k: m for k,m in OURS.items() if k.split('.')[1] in o} for o in (ROOMS, ('course',)))


def doors(modules):
    "Name and function of each door"
    for name, module in modules.items():
        for k, o in vars(module).items():
            if inspect.isclass(o) and o.__module__ == name:
                yield from ((f'{name}.{k}.{m}', f) for m,f in vars(o).items() if hasattr(f, '_is_checked'))
            elif hasattr(o, '_is_checked') and o.__module__ == name: yield f'{name}.{k}', o


DOORS = dict(doors(MODULES))


def rules(f):
    "Parameters of a function, those of which something is known"
    return {k: o for k,o in parameters_of(inspect.unwrap(f), f._source, f._own).items() if o is not None}


# What no parameter of a kind may be, by the first words of the kind
WRONG = {'a whole number': ['x', '', nan, inf, -inf, 1.5, True, [[]], {}, object, np.nan, torch.tensor(.5), np.array([1, 2])],
         'a number': ['x', '', nan, inf, -inf, True, [[]], {}, object, 1j, torch.tensor(nan), np.array([.1, .2])],
         'True or False': ['x', 'no', '', nan, inf, 5, -1, 1.5, [], {}, object], 'text': [5, nan, True, [], {}, object, b'x', 1.5],
         'a path': [5, nan, True, '', [], {}, object, -1], 'a list': [5, nan, inf, True, 'x', -1, object],
         'a dictionary': [5, nan, True, 'x', [], object], 'a function, or': [5, nan, True, 'x'], 'a callback': [5, nan, True, 'x',
             object], 'a function': [5, nan, True, 'x', [], {}], 'a fastai': [5, nan, True, 'x', [], {}, object],
         'a network': [5, nan, True, 'x', [], {}, torch.nn.ReLU], 'a device': [5, nan, True, 'gpu', 'cuda:99', '', [], {}, object],
         'an array': [5, nan, True, 'x', {}, object], 'a tensor': [5, nan, True, 'x', {}, object, ['a']],
         "'train'": [nan, True, None, [], -1, 1.5, object]}


def wrong(rule):
    "Bad values for a parameter: those that each of its kinds refuses"
    lists = [WRONG.get(next((k for k in WRONG if kind.what.startswith(k)), None), []) for kind in rule.allowed]
    return [v for v in lists[0] if all(any(repr(v) == repr(o) for o in other) for other in lists[1:])] if lists else []


def check_refuses(f):
    this = [SimpleNamespace()] if '.' in f.__qualname__ else []
    for k, rule in rules(f).items():
        for v in wrong(rule):
            if k == 'self' or any(p.kind == p.VAR_POSITIONAL for p in inspect.signature(f).parameters.values() if p.name == k): continue
            with pytest.raises(CourseError) as e: f(*this, **{k: v})
            assert k in str(e.value) and len(str(e.value)) < 700 and '0x' not in str(e.value)


@pytest.mark.parametrize('name', DOORS)
def test_bad_values_are_refused_before_the_function_begins(name): check_refuses(DOORS[name])


@pytest.mark.parametrize('name', PAGES)
def test_bad_values_are_refused_on_the_pages_of_the_course(name):
    for f in dict(doors({name: PAGES[name]})).values(): check_refuses(f)


@pytest.mark.parametrize('name', DOORS)
def test_numbers_below_their_range_are_refused(name):
    f, this = DOORS[name], [SimpleNamespace()] if '.' in DOORS[name].__qualname__ else []
    for k, rule in rules(f).items():
        if rule.allowed[0].what.startswith(('a whole number of at least', 'a whole number from', 'a number from',
            'a number above')) and not rule.allowed[1:]:
            for v in (-1, -10**30, np.int64(-5), torch.tensor(-3)):
                with pytest.raises(CourseError, match=f'{k} must be'): f(*this, **{k: v})


@pytest.mark.parametrize('name', MODULES | PAGES)
def test_every_public_function_has_a_door(name):
    functions = [o for k,o in vars(OURS[name]).items() if inspect.isfunction(o) and o.__module__ == name and not k.startswith('_')]
    assert not [o.__name__ for o in functions if not hasattr(o, '_is_checked') and inspect.signature(o).parameters]


def test_shapes_are_read_from_comments():
    assert shapes_of('Images, (N, C, H, W), or rows (N, F)') == ('(N, C, H, W)', '(N, F)') and shapes_of('Any tensor (or list)') == ()
    with pytest.raises(CourseError, match=r'x must be a tensor of shape \(N, C, H, W\), got ndarray of shape \(2, 2\)'):
        students.mirrored(np.zeros((2, 2)))
    assert students.mirrored(np.arange(4).reshape(1, 1, 2, 2)).tolist() == [[[[1, 0], [3, 2]]]]
    with pytest.raises(CourseError, match='x must be a tensor'): students.SaltAndPepper(.1).apply([1, 2]) # as its parent class says


@pytest.mark.parametrize('call, words', {
    'a norm of another signature': (lambda: students.conv_layer(1, 2, norm=lambda: None), 'norm <lambda> makes no module'),
    'an init of another signature': (lambda: students.mlp(4, 2, init=lambda: 0), 'init must be a name, or a function'),
    'a Learner for an activation': (lambda: students.mlp(4, 2, activation=SimpleNamespace(dls=0)), 'activation must be'),
    'a batch of another shape': (lambda: students.flops_per_image(torch.nn.Linear(2, 2), torch.zeros(1, 3)), 'does not accept a batch'),
    'a layer that is not there': (lambda: students.layer_outputs(torch.nn.Linear(2, 2), torch.zeros(1, 2), ['relu']), 'unknown layer'),
    'a dictionary for a record': (lambda: students.verdict_table({'a': 1}), 'record must be a record'),
    'an array for a name': (lambda: students.recorded(np.zeros(2)), 'id must be text'),
    'a number for names': (lambda: students.reproduction(5), 'names must be a name or a list of names'),
    'no names': (lambda: students.reproduction([]), 'got none'),
    'too many digits': (lambda: students.panels(10**30), 'that is too large'),
    'a table for a Learner': (lambda: students.evaluate(pd.DataFrame({'a': [1]})), 'learn must be a fastai `Learner`'),
    'a history without losses': (lambda: students.convergence(pd.DataFrame({'a': range(9)})), "unknown column of the history 'train_loss'"),
    'whole numbers for scores': (lambda: students.CrossEntropy().activation(torch.tensor([1, 2])), 'floating-point'),
    'no views': (lambda: feature_table(views=None, model=torch.nn.ReLU(), dls=None), 'views must be a list, each a function'),
    'a class for a network': (lambda: students.trainer(int), 'arch must be a name, a module'),
    'a function of another signature': (lambda: students.search({'lr': [1]}, lambda a, b, c: 0), 'train must be a function of a settings'),
    'an optimiser of another signature': (lambda: students.learner_for('mlp', opt_func=lambda: 0), 'opt_func must be a function'),
    'a module for an optimiser': (lambda: students.learner_for('mlp', opt_func=torch.nn.ReLU()), 'opt_func must be a function that makes'),
    'a metric of another signature': (lambda: students.learner_for('mlp', metrics=lambda: 0), 'each of .predictions, targets.'),
    'a table for metrics': (lambda: students.learner_for('mlp', metrics=pd.DataFrame()), 'each of .predictions, targets.'),
    'a text for networks': (lambda: EnsembleNet('ab'), 'members must be a list'),
    'texts for losses': (lambda: Evaluation(None, None, 'valid', torch.eye(2), torch.arange(2), ['x'], ['a', 'b']), 'losses must be'),
    'a variant that is not there': (lambda: differences_to(dict(rows=[], variants=['slow']), 'slwo', [], 'loss'), "Did you mean 'slow'"),
    'seeds of another variant': (lambda: in_turn(['slow'], {'fast': 1}), 'counts must have a number of seeds for each variant'),
    'more values than positions': (lambda: mean_line(Figure().subplots(), [1, 2], [[1, 2, 3]]), 'as many values as there are positions'),
    'labels and rows of two lengths': (lambda: students.probe_accuracy(np.zeros((4, 2)), np.zeros(3)), 'of the same length'),
    'one address for several': (lambda: download('http://x', 'dl3', 'y'), 'urls must be a list, each text, at least one, got'),
    'a text for paths': (lambda: commit_and_changes('nbs'), 'paths must be a list, each text or a path'),
    'a number among words': (lambda: git('log', 5), 'args must be text or a path, got 5'),
    'a path for a lock': (lambda: take_lock('a.lock', 'a', 0), "lock must be a `BaseFileLock`, got 'a.lock'"),
    'a number for a figure': (lambda: save_figure(5, 'a.png'), 'fig must be a `Figure`'),
    'an object among tensors': (lambda: with_checksum({'a': object()}, {}), 'tensors must be a dictionary, each value a `Tensor`'),
    'a number among texts': (lambda: with_checksum({}, {'a': 1}), 'texts must be a dictionary, each value text'),
    'states of another kind': (lambda: put_rng_states([1, 2]), 'states must be what rng_states gave'),
    'positions that are no whole numbers': (lambda: index_split(4, [0.5]), 'valid must be a list, each a whole number of at least 0'),
    'positions beyond the end': (lambda: index_split(4, [4]), 'valid must be positions from 0 to 3, got 4'),
    'no positions': (lambda: covering_radius(np.eye(3), []), 'rows must be a list, each a whole number, at least one'),
    'a name that is not there': (lambda: renumber([0], ['a'], ['b']), "new must have names of vocab only, got 'b'"),
    'True for a class': (lambda: class_number(True, ['a', 'b']), 'unknown class True'),
    'an unknown scale': (lambda: to_bytes(np.zeros((1, 2)), 'half'), "unknown scale 'half'"),
    'a table for widths': (lambda: students.mlp(4, 2, widths=pd.DataFrame()), 'widths must be'),
    'a table for views': (lambda: students.dls_for('fashion_mini', augment=pd.DataFrame()), 'augment must be'),
    'a module that is not there': (lambda: cam_maps(torch.nn.ReLU(), torch.zeros(1, 2), lambda o: o, 'a'), "ReLU has no module 'a'"),
    'an axis that is neither': (lambda: map_size((1, 2, 3), 1), 'channels must be 0 or -1, got 1'),
    'a matrix that is not square': (lambda: scores_by_class(np.zeros((2, 3))), 'as many rows as columns'),
    'outputs of no item': (lambda: class_probabilities(torch.zeros(0, 2), torch.nn.MSELoss()), 'at least one, got'),
    'rows of text': (lambda: cka([['a']]*5, np.eye(5)), 'x must be rows of numbers'),
    'a text for sizes': (lambda: cost_at(torch.nn.ReLU(), torch.zeros(1, 1, 4, 4), b'ab'), 'sizes are a list'),
    'a number of points below two': (lambda: students.loss_line(trained, points=1), 'points must be a whole number of at least 2'),
    'a deviation of zero': (lambda: renormalized(trained.dls, [.5], [0]), 'std must be one number above 0 for each channel'),
    'NaN for a name': (lambda: students.choose_classes([0, 1], [0, 1], vocab=['a', nan]), 'vocab must be a list of names'),
}.values())
def test_kinds_of_bad_values_are_one_sentence(call, words):
    with pytest.raises(CourseError, match=words) as e: call()
    assert '\n' not in str(e.value)


def test_a_page_of_the_course_has_names_of_its_own():
    from dlcourse.course.pcs import feature_space, landscape, similarity
    from dlcourse.course.records import Results
    assert landscape.two_sides([3., 2., 1.])[0].tolist() == [2, 1] # `loss` is a function elsewhere
    points = parameters_of(inspect.unwrap(feature_space.faithfulness), None, True)['points'] # a whole number elsewhere
    assert points.words == 'an array of finite numbers of shape (n, 2)'
    for f, words in ((lambda: similarity.chain_learner(5, None, 1), 'trial must be'),
                     (lambda: landscape.draw_landscape({}), 'record must be a record'),
                     (lambda: landscape.losses_along(torch.nn.ReLU(), 'kept'), 'learn must be a fastai `Learner`'),
                     (lambda: Results([1]), 'rows must be a list, each a dictionary')):
        with pytest.raises(CourseError, match=words): f()


X, Y = np.random.default_rng(0).normal(size=(12, 3)), np.arange(12) % 2


@pytest.mark.parametrize('call, words', {
    'features with a gap': (lambda o: o.feature_space.class_means(np.where(X > 1, nan, X), Y),
        'X must be an array of finite numbers of shape'),
    'no features': (lambda o: o.feature_space.class_means(X[:0], Y[:0]), 'X must be an array of finite numbers'),
    'features of text': (lambda o: o.feature_space.class_means([['a']], [0]), 'X must be an array of finite numbers'),
    'truths for numbers': (lambda o: o.feature_space.class_means(X > 0, Y), 'X must be an array of finite numbers'),
    'classes below zero': (lambda o: o.feature_space.class_means(X, Y - 1), 'y must be an array of whole numbers from 0'),
    'half classes': (lambda o: o.feature_space.class_means(X, Y/2), 'y must be an array of whole numbers from 0'),
    'a class without a sample': (lambda o: o.feature_space.class_means(X, 2*Y), 'got none of 1'),
    'features and labels of two lengths': (lambda o: o.feature_space.class_means(X, Y[1:]),
        'X and y must have one length n, got 12 and 11'),
    'points in space': (lambda o: o.feature_space.faithfulness(X, Y, X, X[:2, :2]),
        r'points must be of shape \(n, 2\), got ndarray of shape'),
    'a matrix that is not square': (lambda o: o.similarity.counterparts(X), 'matrix must have one length L, got 12 and 3'),
    'more examples than there are': (lambda o: o.core_sets.drawn(X, 13), 'k must be at most 12, the length N of features, got 13'),
    'positions beyond the end': (lambda o: o.core_sets.accuracies([0, 12], [2], (X, Y), (X, Y)),
        'rows must be below 12, the length N of train'),
    'three arrays for two': (lambda o: o.core_sets.accuracies([0, 1], [2], (X, Y, Y), (X, Y)), 'train must be a list of 2 arrays of shape'),
    'a name that the page does not list': (lambda o: o.core_sets.choose_by('herdin', X, 2), "Did you mean 'herding'"),
    'a model that has not learnt': (lambda o: o.projections.output_of(o.projections.PCA(), X),
        'model must be a fitted model of scikit-learn'),
    'a text for a model': (lambda o: o.leak.clean_accuracy(o.leak.StandardScaler(), 'SVC', X, Y), 'model must be a model of scikit-learn'),
    'a table without a column': (lambda o: o.surrogate.rank_outside(pd.DataFrame({'lr': [1]}), 'gp'),
        'with the columns opt_func, init, lr'),
    'a figure that is not there': (lambda o: o.leak.seed_differences(o.Results([]), 'scaling', 'SVM'),
        'have no seed in common with a figure'),
    'a variant that is not there': (lambda o: o.surrogate.mean_rank(o.Results([dict(variant='a', seed=1, figures=dict(b=1))]), 'c'),
        "no variant 'c'. There are: a"),
    'a dictionary for results': (lambda o: o.surrogate.mean_rank({}, 'c'), 'r must be `Results`, got {}'),
    'a typing error in a record': (lambda o: o.values(dict(rows=[], variants=['slow']), 'slwo', 'loss'), "Did you mean 'slow'"),
    'a typing error in a figure': (lambda o: o.values(dict(rows=[dict(variant='a', seed=1, figures=dict(loss=1))]), 'a', 'los'),
        "Did you mean 'loss'"),
    'a row of nothing': (lambda o: o.row_key({}), 'row must be a row of a record'),
    'an object in a record': (lambda o: o.checksum({'a': object()}), 'a record holds numbers, texts, lists and dictionaries only'),
    'NaN for a seed': (lambda o: o.interval([1, nan, 2]), 'values must be one finite number for each seed'),
    'no folders': (lambda o: o.merge([]), 'folders must be a list, each a path, at least one'),
}.values())
def test_bad_values_of_a_page_are_one_sentence(call, words):
    from dlcourse.course import experiment, intervals, merging, records
    from dlcourse.course.pcs import core_sets, feature_space, leak, projections, similarity, surrogate
    pages = dict(core_sets=core_sets, feature_space=feature_space, leak=leak, projections=projections, similarity=similarity)
    names = {k: v for m in (records, experiment, intervals, merging) for k,v in vars(m).items()}
    with pytest.raises(CourseError, match=words) as e: call(SimpleNamespace(**names | pages, surrogate=surrogate))
    assert '\n' not in str(e.value)


def test_arrays_of_any_library_are_welcome_on_a_page():
    from dlcourse.course.pcs.feature_space import class_means
    means = class_means(X, Y).tolist()
    for x, y in ((X.tolist(), Y.tolist()), (torch.tensor(X), torch.tensor(Y)),
                 (pd.DataFrame(X), pd.Series(Y)), (X.copy(order='F'), tuple(Y))):
        assert np.allclose(class_means(x, y), means)


def test_each_entry_of_a_dictionary_is_checked(tmp_path):
    from dlcourse.training.checkpoints import load_tensors, save_tensors
    with pytest.raises(CourseError, match='tensors must be a dictionary, each value a `Tensor`'):
        save_tensors(tmp_path/'a', {'w': object()})
    assert not any(tmp_path.iterdir())
    save_tensors(tmp_path/'a', {'w': torch.ones(2)})
    assert load_tensors(tmp_path/'a')[0]['w'].tolist() == [1, 1]


def test_losses_may_be_a_list(): assert Evaluation(None, None, 'valid', torch.eye(2), torch.arange(2), [.5, 1.5], ['a', 'b']).loss == 1


@pytest.mark.parametrize('f', [torch.optim.Adam, students.adamw, lambda p, lr, **kw: None, lambda p, lr, wd=0: None])
def test_optimisers_of_any_kind_are_welcome(f): assert parameters_of(inspect.unwrap(students.learner_for))['opt_func'](f) is f


@pytest.mark.parametrize('f', [lambda p, y: 0, lambda p, y, z: 0, [lambda p, y, n=1: 0], [], None])
def test_metrics_of_any_kind_are_welcome(f): assert parameters_of(inspect.unwrap(students.learner_for))['metrics'](f) is f


def test_a_name_that_no_disk_takes_is_refused():
    with pytest.raises(CourseError, match='data must be a name, a folder or arrays'): students.dls_for('x'*300)


@pytest.mark.parametrize('rows', [[0, 2], (0, 2), np.array([0, 2]), np.array([0, 2], np.uint8), torch.tensor([0, 2]), range(0, 3, 2),
    pd.Series([0, 2], [7, 8]), [np.int64(0), torch.tensor(2)]], ids=repr)
def test_positions_of_any_kind_are_welcome(rows):
    assert index_split(4, rows)[1].tolist() == [0, 2] and covering_radius(np.eye(4), rows) == pytest.approx(2**.5)


def test_what_is_right_is_still_taken():
    assert renumber((0, 1), np.array(['a', 'b']), ('b', 'a')).tolist() == [1, 0]
    assert renumber([1], ['a', 'b'], (o for o in 'ab')).tolist() == [1] and index_split(2, [])[0].tolist() == [0, 1]
    states = rng_states()
    put_rng_states(states, ())
    assert class_number(np.int64(1), (o for o in 'ab')) == 1 and class_number('b', pd.Index(['a', 'b'])) == 1
    assert students.inception((1, 16, 16), 2, modules=np.full((1, 6), 2)) and students.mlp(4, 2, widths=torch.tensor([3]))
    assert {o: v.tolist() for o,v in zip('xy', holdout([0, 0, 1, 1], .5))}.keys() == {'x', 'y'}
    assert [len(o) for o in holdout(['a', 'a', 'b', 'b'], .5)] == [2, 2]
    assert git('rev-parse', '--is-inside-work-tree') in ('true', None) and commit_and_changes((Path('core.py'),))
    assert with_checksum({'a': torch.zeros(1)}, {'b': 'c'})['b'] == 'c' and map_size((1, 2, 3)) == (2, 3)


def test_numbers_of_students_have_a_range():
    named = {k: o for k,o in vars(students).items() if getattr(o, '__module__', '').startswith('dlcourse.')}
    found = [(k, p) for k,o in named.items() for f in [vars(o).get('__init__') if inspect.isclass(o) else o] if hasattr(f, '_is_checked')
             for p,r in rules(f).items() if r.allowed[0].what in ('a whole number', 'a number')]
    assert {k for k,_ in found} <= {'BatchAffine', 'shifted', 'convergence', 'During',
        'Evaluation', 'lesions'} # degrees, pixels and losses may be any number; numbers of blocks are checked against the network


@pytest.mark.parametrize('v', [3, np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)])
def test_whole_numbers_of_any_library_are_welcome(v):
    @checked
    def f(n:int): return n
    assert f(v) == 3 and type(f(v)) is int


@pytest.mark.parametrize('v', [.5, np.float32(.5), torch.tensor(.5), np.array(.5)])
def test_numbers_of_any_library_are_welcome(v):
    @checked
    def f(share:float): return share
    assert f(v) == .5 and type(f(v)) is float


@pytest.mark.parametrize('v', [[8, 16], (8, 16), np.array([8, 16]), torch.tensor([8, 16])])
def test_lists_of_any_kind_are_welcome(v):
    @checked
    def f(widths:list[int]): return widths
    assert [int(o) for o in f(v)] == [8, 16]


@pytest.mark.parametrize('text, limits', [
    ('Share, 0 to below 1', Limits(0, 1, below=True)), ('Ends after 3 or more', Limits(3)), ('From 0 (black) to 1 (white)', Limits(0, 1)),
    ('Any number', Limits()), ('Side, at least 9×9 pixels', None), ('1 for grey, 3 for colour; None to keep', Limits(among=(1,
        3))), ('A name', None)])
def test_ranges_are_read(text, limits): assert limits_of(text) == limits


@pytest.mark.parametrize('text, names', [("'a' or 'b'", ('a', 'b')), ("'a', 'b', or 'c' for each", ('a', 'b', 'c')),
    ("'a', 'b', ... or 'c'", ()),
                                         ("'a', 'b', a pruner, or None", ()), ("'a' or 'b': pooling; 'c': none", ())])
def test_choices_are_read(text, names): assert choices_of(text) == names


def test_the_door_keeps_a_function_as_it_is():
    def f(n:int=3): return n
    f.kept = 1
    g = checked(f)
    assert inspect.signature(g) == inspect.signature(f) and (g.__name__, g.__doc__, g.kept) == (f.__name__, f.__doc__, 1)
    assert checked(g) is g


def test_events_and_forward_have_no_door():
    class Net(torch.nn.Module):
        def forward(self, x): return x
        def before_batch(self, n): return n
        def sample(self, n:int): return n
    Net.__module__ = Net.forward.__module__ = Net.before_batch.__module__ = Net.sample.__module__ = 'here'
    check_calls(dict(__name__='here', Net=Net))
    assert [k for k,o in vars(Net).items() if hasattr(o, '_is_checked')] == ['sample']


def test_kinds_in_words():
    filters = parameters_of(inspect.unwrap(DOORS['dlcourse.models.cnn.cnn']))['filters']
    assert in_words(filters.allowed).endswith('or a list of them')


def test_a_ratio_of_any_library_is_welcome(): assert len(imbalance([0]*4 + [1]*4, torch.tensor(2.))) == 6


def test_lists_become_arrays_and_texts_paths():
    @checked
    def f(a:np.ndarray, p:Path, t:torch.Tensor): return type(a), type(p), type(t)
    assert f([1, 2], 'x', [1.]) == (np.ndarray, type(Path('x')), torch.Tensor)


def test_a_temperature_at_the_end_of_the_search_is_said(capsys):
    assert best_temperature(torch.tensor([[.999, .001], [.001, .999]]), torch.tensor([0, 1])) < 1
    assert 'no best temperature' in capsys.readouterr().out
