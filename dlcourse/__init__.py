"Deep-learning course work on fastai: data, networks, training and judging in one call each."
from importlib.metadata import version

__version__ = version(__name__)
