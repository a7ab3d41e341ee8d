"""What most pages do first, done once in the process that all of them are forked from: what is set up on first use, and sizes
of networks, are then there for every page. Nothing is trained, since autograd must not start before a fork."""
import inspect
from dlcourse import all as everything
from dlcourse.core import kept_rng
from dlcourse.data.blocks import dls_for
from dlcourse.models.zoo import archs
from dlcourse.training.learner import learner_for
from dlcourse.values.door import parameters_of

names = [o for o in vars(everything).values() if getattr(o, '__module__', '').startswith('dlcourse')]
methods = [f for o in names if inspect.isclass(o) for f in vars(o).values()]
for f in names + methods:
    if hasattr(f, '_is_checked'): parameters_of(inspect.unwrap(f), f._source)
with kept_rng():
    for data in ('digits', 'fashion_mini'): learner_for('cnn', dls_for(data, n_per_class=10, bs=2), filters=2)
    archs()
