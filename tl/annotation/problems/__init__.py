"""Find what is doubtful in a labeled data set: labels, duplicates, errors, outliers, thin classes.

`gather_evidence` computes what is known of the images, `find_problems` draws conclusions from it. Neither knows what
people decide about the problems, nor any page.
"""

from tl.annotation.problems.evidence import Evidence
from tl.annotation.problems.find import find_problems
from tl.annotation.problems.gather import gather_evidence
from tl.annotation.problems.problem import KINDS, Problem

__all__ = ["KINDS", "Evidence", "Problem", "find_problems", "gather_evidence"]
