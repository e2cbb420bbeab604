"""What a model sees on a few batches: inputs and gradients of its weights, as states that add.

`tdecomp_torch.capture` fills them, `tdecomp.starts` makes starts of adapters from them, and
`tdecomp.files.statistics_file` keeps them; none of it needs torch but the first.
"""

from tdecomp.statistics.gradient import Gradient as Gradient
from tdecomp.statistics.inputs import InputStatistics as InputStatistics
from tdecomp.statistics.statistics import SiteStatistics as SiteStatistics
from tdecomp.statistics.statistics import Statistics as Statistics

__all__ = ["Gradient", "InputStatistics", "SiteStatistics", "Statistics"]
