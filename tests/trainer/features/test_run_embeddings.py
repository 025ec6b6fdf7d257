from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.models import solid
from tests.trainer.conftest import fresh_cache as fresh_cache
from tests.trainer.make import forbid_decoding, make_png
from tl.errors import DataError
from tl.progress import Silent
from tl.runtime.imaging.pipeline import load_input
from tl.trainer.features.run_embeddings import embed_images, find_neighbors
from tl.trainer.models.build import load_network
from tl.trainer.models.network import Deployed
from tl.trainer.run_folder.run import Run


@pytest.mark.usefixtures("fresh_cache")
def test_embed_images__what_the_model_file_gives_and_only_once(
    finished_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, card, _ = load_network(finished_run)
    labeled = finished_run.images("val")
    found = embed_images(finished_run, network, card.preprocessing, labeled, Silent())
    images = np.stack([load_input(image.path, card.preprocessing) for image in labeled])
    with torch.no_grad():
        wanted = Deployed(network, 1.0)(torch.from_numpy(images))[1].numpy()
    assert found.images == tuple(labeled)
    # Sums in a different order.
    np.testing.assert_allclose(found.embeddings, wanted, rtol=1e-4, atol=1e-5)
    forbid_decoding(monkeypatch)
    again = embed_images(finished_run, network, card.preprocessing, labeled, Silent())
    assert np.array_equal(again.embeddings, found.embeddings)


@pytest.mark.usefixtures("fresh_cache")
def test_find_neighbors__of_the_same_color(finished_run: Run, tmp_path: Path) -> None:
    red = make_png(tmp_path / "new.png", solid((210, 30, 20), 40, 40))
    own = finished_run.image_paths("train")[0]
    new, known = find_neighbors(finished_run, [str(red), own], 3, Silent())
    assert [neighbor.label for neighbor in new] == ["red"] * 3
    assert own not in [neighbor.path for neighbor in known]
    likeness = [neighbor.likeness for neighbor in new]
    assert likeness == sorted(likeness, reverse=True)
    assert max(likeness) <= 1 + 1e-6


def test_find_neighbors__nothing_to_compare_with(finished_run: Run, tmp_path: Path) -> None:
    shutil.copytree(finished_run.folder, tmp_path / "deep" / "moved")  # so that no path leads to an image
    red = make_png(tmp_path / "new.png", solid((210, 30, 20), 40, 40))
    with pytest.raises(DataError, match="training images no longer exist"):
        find_neighbors(Run(tmp_path / "deep" / "moved"), [str(red)], 3, Silent())


def test_neighbors__by_the_command_line(finished_run: Run, tmp_path: Path, run_tl: RunTl) -> None:
    make_png(tmp_path / "new" / "a.png", solid((20, 210, 30), 40, 40))
    done = run_tl("neighbors", tmp_path / "new", "--run", finished_run.folder, "--top", "2")
    assert [(row["rank"], row["label"]) for row in done.rows()] == [("1", "green"), ("2", "green")]
    plain = json.loads(run_tl("neighbors", tmp_path / "new", "--run", finished_run.folder, "--json").out)
    assert len(plain) == 5
    (tmp_path / "new" / "b.png").write_bytes(b"")
    faulty = run_tl("neighbors", tmp_path / "new", "--run", finished_run.folder)
    assert (faulty.code, "b.png" in faulty.err) == (1, True)
