"""Tests of tl.annotation.problems."""
