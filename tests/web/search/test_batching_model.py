"""The network behind the search server: what happens before the first request."""

from typing import Any

import pytest
import torch

from vizsla.embed import runtime
from vizsla.embed.compute import Compute, runtime_package
from vizsla.embed.torch_runtime import Vectors, eager
from vizsla.model.embedder import Embedder
from vizsla.web.search.batching_model import Model


@pytest.fixture
def embedder() -> Embedder:
    return Embedder.build("tiny", weights="random", image_size=32, seed=5)


def test_warming_up_finds_a_runtime_that_a_black_image_does_not_betray(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flips(embedder: Embedder, compute: Compute) -> Vectors:
        right = eager(embedder, compute)
        return lambda pixels: right(pixels.flip(2))

    monkeypatch.setitem(runtime.START, "openvino", flips)
    model = Model(embedder, Compute("cpu", "fp32", 4, 1, "openvino"))
    model.warm_up()
    model.close()
    assert model.network.compute.runtime == "torch"
    assert "openvino computes other vectors" in caplog.text


def test_nothing_is_compiled_after_the_warm_up(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = runtime_package("openvino").Core
    compile_model, compiled = core.compile_model, []

    def recorded(*arguments: Any) -> Any:
        compiled.append(arguments)
        return compile_model(*arguments)

    monkeypatch.setattr(core, "compile_model", recorded)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = Model(embedder, Compute("cpu", "fp32", 4, 1, "openvino"))
        model.warm_up()
        assert len(compiled) == 2  # one image by all cores, several by one core each
        pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8).numpy()
        for one in [model.image(pixels[0]), *model.images(list(pixels))]:
            one.result()
        model.close()
    finally:
        torch.set_num_threads(before)
    assert len(compiled) == 2
