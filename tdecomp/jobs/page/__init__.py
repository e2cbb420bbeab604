"""Reports as one HTML page that needs nothing else: no network, no scripts."""

from tdecomp.jobs.page.explored import explored_part as explored_part
from tdecomp.jobs.page.factored import ToldBeside as ToldBeside
from tdecomp.jobs.page.factored import factored_part as factored_part
from tdecomp.jobs.page.html import MADE_BY as MADE_BY
from tdecomp.jobs.page.html import whole_page as whole_page

__all__ = ["MADE_BY", "ToldBeside", "explored_part", "factored_part", "whole_page"]
