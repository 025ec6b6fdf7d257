"""Tests of tl.annotation."""
