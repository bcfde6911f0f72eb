"""Our own TFDS sets, by the name that a config's `tfds` key uses."""

from llm.data.datasets.bible import Bible
from llm.data.datasets.exchanges import Exchanges
from llm.data.datasets.reviews import Reviews
from llm.data.datasets.shakespeare import Shakespeare

BUILDERS = {'bible': Bible, 'exchanges': Exchanges, 'reviews': Reviews, 'shakespeare': Shakespeare}
