"""The modules of the pages of many images that need no browser, in Node."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.web_driver import needs_node, run_node

pytestmark = needs_node

LAYOUT = """
import { layout, lookedAt, position, scrollTo, seen, windowOf } from "@/images/rows.js";
const run = ({ count, width, size }) => {
  const of = layout(count, width, size, 10, 30);
  const at = [0, 1, count - 1].map((index) => position(of, index));
  const scrolls = [[0, 500], [count - 1, 0], [0, 0]].map(([index, top]) => scrollTo(of, index, top, 600));
  return { of, at, scrolls, first: seen(of, 0, 600), last: seen(of, of.height - 600, 600),
    looked: lookedAt(of, of.step / 2 + 30, of.step * 2), windows: windowOf(210, 390, count, 200) };
};
"""


def test_layout__20000_images(tmp_path: Path) -> None:
    """1,000 px hold 5 columns of 192 px; a row is 192 + 30 + 10 px high."""
    found = run_node(LAYOUT, {"count": 20_000, "width": 1000, "size": 180}, tmp_path)
    assert found["of"]["columns"] == 5
    assert found["of"]["side"] == 192
    assert found["of"]["height"] == 4000 * 232 - 10
    assert found["at"] == [{"x": 0, "y": 0}, {"x": 202, "y": 0}, {"x": 808, "y": 3999 * 232}]
    assert found["first"] == [0, 15]
    assert found["last"][1] == 20_000
    assert found["last"][1] - found["last"][0] <= 20
    assert found["looked"] == [5, 15], "the first row is seen by less than half"
    assert found["windows"] == [200, 400]
    assert found["scrolls"] == [0, 3999 * 232 + 222 - 600, 0]


@pytest.mark.parametrize("count", [0, 1, 5, 6])
@pytest.mark.parametrize("width", [30, 200, 1000])
def test_layout__each_image_has_a_place(count: int, width: int, tmp_path: Path) -> None:
    code = """
    import { layout, position, seen } from "@/images/rows.js";
    const run = ({ count, width }) => {
      const of = layout(count, width, 180, 10, 30);
      return { of, places: [...Array(count).keys()].map((index) => position(of, index)), seen: seen(of, 0, 1e6) };
    };
    """
    found = run_node(code, {"count": count, "width": width}, tmp_path)
    places = [(place["x"], place["y"]) for place in found["places"]]
    assert len(set(places)) == count
    assert all(x + found["of"]["side"] <= max(width, 1) for x, _ in places)
    assert all(y + found["of"]["tall"] <= found["of"]["height"] for _, y in places)
    assert found["seen"] == [0, count]


SELECTION = """
import { Selection } from "@/images/selection.js";
const run = ({ order, steps }) => {
  const selection = new Selection();
  selection.setOrder(order);
  return steps.map(([what, ...given]) => {
    const result = selection[what](...given);
    const selected = [...selection.selected].sort((one, other) => one - other);
    return { focus: selection.focus, selected, targets: selection.targets(), result };
  });
};
"""


def select(steps: list[list[object]], tmp_path: Path, order: list[int] | None = None) -> list[dict[str, object]]:
    """Steps on ten images, 10 to 19, in four columns."""
    return run_node(SELECTION, {"order": order or list(range(10, 20)), "steps": steps}, tmp_path)


def test_selection__moves_the_focus_in_rows(tmp_path: Path) -> None:
    keys = [
        "ArrowRight",
        "ArrowDown",
        "ArrowDown",
        "ArrowDown",
        "ArrowLeft",
        "Home",
        "ArrowUp",
        "ArrowLeft",
        "End",
        "PageUp",
    ]
    found = select([["move", key, 4, 2] for key in keys], tmp_path)
    assert [one["focus"] for one in found] == [11, 15, 19, 19, 18, 10, 10, 10, 19, 11]
    assert all(one["result"] for one in found)
    assert select([["move", "x", 4, 2]], tmp_path)[0]["result"] is False


def test_selection__down_reaches_a_shorter_last_row(tmp_path: Path) -> None:
    """Images 10 to 17 fill two rows; the last row has 18 and 19. Down from 17 goes to the end, not nowhere."""
    found = select([["focusOn", 17], ["move", "ArrowDown", 4, 2]], tmp_path)
    assert found[-1]["focus"] == 19


def test_selection__extends_from_the_anchor(tmp_path: Path) -> None:
    steps: list[list[object]] = [
        ["toggle", 18],
        ["focusOn", 12],
        ["move", "ArrowRight", 4, 2, True],
        ["move", "ArrowRight", 4, 2, True],
        ["move", "ArrowLeft", 4, 2, True],
        ["focusOn", 10, True],
    ]
    found = select(steps, tmp_path)
    assert [one["selected"] for one in found] == [
        [18],
        [18],
        [12, 13, 18],
        [12, 13, 14, 18],
        [12, 13, 18],
        [10, 11, 12, 18],
    ]
    assert found[-1]["targets"] == [10, 11, 12, 18]


def test_selection__targets_are_the_focus_without_a_selection(tmp_path: Path) -> None:
    found = select([["focusOn", 14], ["all"], ["clear"]], tmp_path)
    assert [len(one["targets"]) for one in found] == [1, 10, 1]  # type: ignore[arg-type]
    assert found[2]["targets"] == [14]


def test_selection__focus_goes_on_when_images_leave(tmp_path: Path) -> None:
    steps: list[list[object]] = [
        ["focusOn", 13],
        ["setOrder", [10, 11, 12, 14, 15, 16, 17, 18, 19]],
        ["setOrder", [10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21]],
        ["setOrder", [10, 11, 19, 20]],
        ["setOrder", [10, 11]],
        ["setOrder", []],
        ["setOrder", [5, 6]],
    ]
    assert [one["focus"] for one in select(steps, tmp_path)] == [13, 14, 14, 19, 11, None, 5]


def test_selection__forgets_images_that_left(tmp_path: Path) -> None:
    found = select([["toggle", 11], ["toggle", 12], ["setOrder", [12, 13]], ["focusOn", 13, True]], tmp_path)
    assert found[2]["selected"] == [12]
    assert found[3]["selected"] == [12, 13]


def test_viewport__keeps_the_point_under_the_pointer(tmp_path: Path) -> None:
    code = """
    import { FIT, pan, zoomAt } from "@/images/viewport.js";
    const natural = { width: 1600, height: 1200 }, stage = { width: 800, height: 600 };
    const run = () => {
      const near = zoomAt(FIT, 2, { x: 100, y: -50 }, natural, stage);
      return [near, zoomAt(near, 0.5, { x: 100, y: -50 }, natural, stage), pan(near, 9999, -9999, natural, stage),
        zoomAt(FIT, 1e6, { x: 0, y: 0 }, natural, stage), pan(FIT, 50, 50, natural, stage)];
    };
    """
    near, back, edge, largest, fit = run_node(code, None, tmp_path)
    assert near == {"scale": 2, "x": -100, "y": 50}, "the point at (100, -50) of the fitted image is still there"
    assert back == fit == {"scale": 1, "x": 0, "y": 0}
    assert edge == {"scale": 2, "x": 400, "y": -300}, "no gap between the image's edge and the stage's"
    assert largest["scale"] == 8, "fitted at half its size, so that 8 shows a pixel on 4 of the screen"


def test_tones__stay_with_their_class(tmp_path: Path) -> None:
    code = """
    import { Tones } from "@/images/tones.js";
    const run = (lists) => {
      const tones = new Tones();
      const all = (names) => Object.fromEntries(names.map((name) => [name, tones.of(name)]));
      return lists.map((names) => (tones.update(names), all(names)));
    };
    """
    lists = [["ant", "bee", "fly"], ["ant", "wasp", "fly"], ["wasp", "fly"], ["wasp", "fly", "new"]]
    first, renamed, removed, added = run_node(code, lists, tmp_path)
    assert len(set(first.values())) == 3
    assert renamed["wasp"] == first["bee"]
    assert removed == {"wasp": first["bee"], "fly": first["fly"]}
    assert added["new"] == first["ant"], "the color of the removed class is free again"
    (many,) = run_node(code, [[f"c{n}" for n in range(8)]], tmp_path)
    assert len(set(many.values())) == 8


def test_name_of__keys_of_several_layouts(tmp_path: Path) -> None:
    code = """
    import { nameOf } from "@/images/keys.js";
    const run = (events) => events.map(nameOf);
    """
    events = [
        {"key": "X", "shiftKey": False},
        {"key": "1", "code": "Digit1"},
        {"key": "&", "code": "Digit1"},
        {"key": "é", "code": "Digit2"},
        {"key": "?", "code": "Slash", "shiftKey": True},
        {"key": "Z", "metaKey": True, "shiftKey": True},
        {"key": "a", "ctrlKey": True},
        {"key": "ArrowLeft", "shiftKey": True},
    ]
    names = ["x", "1", "1", "2", "?", "Ctrl+Shift+z", "Ctrl+a", "Shift+ArrowLeft"]
    assert run_node(code, events, tmp_path) == names


def test_records__assumptions_wait_for_their_answers(tmp_path: Path) -> None:
    """Two actions on an image: the first answer brings its version, but the second action stays shown."""
    code = """
    import { Records } from "@/images/records.js";
    const run = async () => {
      const asked = [];
      const fetch = async (ids) => (asked.push(ids), { records: ids.map((id) => ({ id, version: 0, label: null })) });
      const records = new Records(fetch, () => {}), seen = [];
      records.want([...Array(450).keys()]);
      await new Promise((resolve) => setTimeout(resolve, 60));
      const first = records.assume([3], (record) => ({ ...record, label: "ant" }));
      const second = records.assume([3], (record) => ({ ...record, label: "bee" }));
      const see = () => { const { label, version } = records.get(3); seen.push([label, version]); };
      see();
      records.put([{ id: 3, version: 0, label: "stale" }]);
      first.settle([{ id: 3, version: 1, label: "ant" }]);
      see();
      second.settle([{ id: 3, version: 2, label: "bee" }]);
      see();
      records.put([{ id: 3, version: 1, label: "older" }]);
      see();
      records.assume([3], (record) => ({ ...record, label: "wasp" })).takeBack();
      see();
      return { sizes: asked.map((ids) => ids.length), seen };
    };
    """
    found = run_node(code, None, tmp_path)
    assert found["sizes"] == [200, 200, 50]
    assert found["seen"] == [["bee", 0], ["bee", 1], ["bee", 2], ["bee", 2], ["bee", 2]]


def test_records__an_answer_from_before_a_change_is_asked_again(tmp_path: Path) -> None:
    code = """
    import { Records } from "@/images/records.js";
    const run = async () => {
      const pause = () => new Promise((resolve) => setTimeout(resolve, 40));
      const asked = [], answers = ["old", "new", "newest"];
      let release = null;
      const fetch = (ids) => new Promise((resolve) => {
        const suggestion = answers[asked.push(ids) - 1];
        release = () => resolve({ records: ids.map((id) => ({ id, version: 0, suggestion })) });
      });
      const records = new Records(fetch, () => {}), seen = [];
      records.want([7]);
      await pause();
      records.expire();
      for (let n = 0; n < 2; n++) {
        release();
        await pause();
        seen.push(records.get(7).suggestion);
        records.want([7]);
        await pause();
      }
      return { seen, count: asked.length };
    };
    """
    assert run_node(code, None, tmp_path) == {"seen": ["old", "new"], "count": 2}


def test_latest__an_answer_is_of_the_call_or_later(tmp_path: Path) -> None:
    """Three ask while a request is under way: they share the next one. An error ends only what waited for it."""
    code = """
    import { Latest } from "@/images/latest.js";
    const run = async () => {
      const pause = () => new Promise((resolve) => setTimeout(resolve, 10)), taken = [];
      let now = 0, asked = 0, running = 0, most = 0;
      const latest = new Latest(async () => {
        const found = now, number = ++asked;
        most = Math.max(most, ++running);
        await pause();
        running--;
        if (number === 3) throw new Error("refused");
        return found;
      }, (found) => taken.push(found));
      const first = latest.now();
      now = 1;
      await Promise.all([latest.now(), latest.now(), latest.now()]);
      await first;
      now = 2;
      const results = await Promise.allSettled([latest.now(), latest.now()]);
      return { taken, asked, most, results: results.map(({ status }) => status) };
    };
    """
    found = run_node(code, None, tmp_path)
    assert found == {"taken": [0, 1, 2], "asked": 4, "most": 1, "results": ["rejected", "fulfilled"]}


LISTS = """
import { bySuggestion, extendRanked, matchClasses, putBack, refillQueue } from "@/label/lists.js";
const run = () => {
  const open = (id) => id % 2 === 0, names = ["giant ant", "antlion", "ant", "Bee", "sand wasp"];
  const suggested = [{ id: 1, suggestion: "ant" }, { id: 2, suggestion: null }, { id: 3, suggestion: "ant" }];
  return {
    queue: refillQueue([2, 3, 4, 6], [8, 4, 10, 12], open, 3),
    away: refillQueue([2, 4, 6], [8, 10, 12], open, 0),
    ranked: extendRanked([6, 2, 3], [2, 8, 6], open),
    back: putBack([10, 13], [12, 11], new Map([[11, 1], [12, 2]])),
    twice: putBack([10, 11], [11], new Map([[11, 0]])),
    groups: [...bySuggestion(suggested)],
    matches: ["AN", "bee", "wa", " ", "ant"].map((text) => matchClasses(names, text)),
  };
};
"""


def test_lists__take_up_news_without_a_jump(tmp_path: Path) -> None:
    found = run_node(LISTS, None, tmp_path)
    assert found["queue"] == [2, 4, 8, 10, 12], "open ones in view stay in place, and the newest choice follows"
    assert found["away"] == [8, 10, 12]
    assert found["ranked"] == [6, 2, 8]
    assert found["back"] == [10, 11, 12, 13]
    assert found["twice"] == [10, 11]
    assert found["groups"] == [["ant", [1, 3]]]


def test_match_classes__prefixes_first(tmp_path: Path) -> None:
    matches = run_node(LISTS, None, tmp_path)["matches"]
    assert matches == [["antlion", "ant", "giant ant"], ["Bee"], ["sand wasp"], [], ["ant", "antlion", "giant ant"]]


def test_empty__says_what_to_do_next(tmp_path: Path) -> None:
    code = """
    import { EMPTY, NOTES, TITLES } from "@/label/texts.js";
    const known = { label: null, search: "", other: null };
    const run = (states) => ({
      views: [EMPTY, NOTES, TITLES].map((texts) => Object.keys(texts).sort()),
      told: states.map((state) => Object.values(EMPTY).map((told) => told({ state, ...known }))),
    });
    """
    blank = {"num_images": 9, "classes": [], "counts": {}, "features": {"error": None}, "head": None}
    used = blank | {"classes": [{"name": "ant", "count": 2}, {"name": "bee", "count": 1}]}
    found = run_node(
        code, [blank, used, used | {"features": {"error": "no network"}}, blank | {"num_images": 0}], tmp_path
    )
    assert found["views"][0] == found["views"][1] == found["views"][2]
    assert all(told["title"] and told["text"].endswith((".", "network")) for state in found["told"] for told in state)
