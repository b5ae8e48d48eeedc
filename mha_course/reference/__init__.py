"""The answers: one small file per lesson, in the order in which they are taught.

``from mha_course import reference`` and then ``reference.attend(q, k, v)``. Every function here is
what the checks compare a learner's answer with; read them after you have written your own.
"""

from .conversion import *  # noqa: F403
from .drop_in import *  # noqa: F403
from .gpu import *  # noqa: F403
from .many_heads import *  # noqa: F403
from .masks import *  # noqa: F403
from .module import *  # noqa: F403
from .one_head import *  # noqa: F403
from .order_and_memory import *  # noqa: F403
from .start_here import *  # noqa: F403
from .without_the_matrix import *  # noqa: F403
