"""Steps of drive_images.mjs, by which tests use a page as a person does."""

from __future__ import annotations

from typing import Any

Step = dict[str, Any]


def keep(name: str, step: Step) -> Step:
    """The same step, whose output is `Driven.named[name]`."""
    return {**step, "as": name}


def press(*keys: str) -> Step:
    return {"do": "press", "keys": keys}


def click(selector: str) -> Step:
    return {"do": "click", "selector": selector}


def visible(selector: str) -> Step:
    return {"do": "visible", "selector": selector}


def until(selector: str, text: str) -> Step:
    """Wait until the text of an element contains another; gives the whole text."""
    return {"do": "until", "selector": selector, "text": text}


def evaluate(code: str) -> Step:
    return {"do": "evaluate", "code": code}


def when(code: str) -> Step:
    """Wait until JavaScript gives something true, and keep it: several things that are read at the same moment."""
    return {"do": "when", "code": code}


def agree(code: str) -> Step:
    """Wait until JavaScript gives equal pairs, {name: [one, other]}, and keep the last ones."""
    return {"do": "agree", "code": code}


def focus(selector: str) -> Step:
    return evaluate(f"document.querySelector({selector!r}).focus()")


def settle() -> Step:
    """Wait until all that was done is saved, and shown. Each test ends with it."""
    return {"do": "settle"}


def pause(milliseconds: int) -> Step:
    return {"do": "pause", "milliseconds": milliseconds}
