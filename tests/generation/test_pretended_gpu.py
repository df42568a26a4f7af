"""On a GPU no search puts a tensor on the wrong device: shown on a pretended one, without graphs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests import pretended_gpu
from tests.pretended_gpu import MixedDevices, PretendedGpu
from tfray.config import GenerationConfig
from tfray.generation import budget, graphs, native
from tfray.generation.generate import generate
from tfray.generation.network import Network
from tfray.generation.rows import Request
from tfray.generation.scoring import align, classify, embed, score


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(graphs, "DEVICES", set())
    monkeypatch.setattr(budget, "free_bytes", lambda device: 1 << 30)
    with PretendedGpu():
        yield


def test_a_pretended_gpu_refuses_what_a_gpu_refuses(gpu: None) -> None:
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    assert (there.device.type, there.is_cuda, here.device.type) == ("cuda", True, "cpu")
    assert (there * 2).device == there.device == here.to("cuda").device
    assert (there.cpu() + here).tolist() == [2, 2, 2]
    assert (there + torch.tensor(1.0)).is_cuda and there[torch.tensor([0, 1])].is_cuda
    for mixed in (
        lambda: there + here,
        lambda: torch.cat([here, there]),
        lambda: here[torch.zeros(1, dtype=torch.long, device="cuda")],
        lambda: torch.nn.functional.linear(there[None], torch.ones(2, 3)),
        lambda: there.numpy(),
        lambda: there.data_ptr(),
    ):
        with pytest.raises(MixedDevices):
            mixed()
    weight = torch.nn.Linear(3, 3).to("cuda").weight
    assert weight.is_cuda and isinstance(weight, torch.nn.Parameter)


@pytest.mark.parametrize(
    "options",
    [
        dict(beam_size=1, repetition_penalty=1.3, suppress_tokens=[4]),
        dict(beam_size=3, n_best=3, no_repeat_ngram=2, min_length=3),
        dict(beam_size=3, early_stopping="beam", coverage_penalty=0.2),
        dict(search="sample", samples=3, n_best=2, seed=4, top_k=5, top_p=0.9, min_p=0.01),
        dict(search="mbr", samples=3, seed=4),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [{}, dict(positions="rotary", norm="rms", norm_position="post")], ids=str)
def test_every_search_stays_on_its_device_and_finds_what_the_cpu_finds(
    shape: dict[str, Any], options: dict[str, Any], lively: Any, sources_of: Any, gpu: None
) -> None:
    model, config = lively(2, **shape), GenerationConfig(batch_rows=5, **options)
    phrases = dict(must=((5, 6),), must_not=((7,),)) if config.search == "beam" and config.beam_size > 1 else {}
    requests = [Request(source, number=row, prefix=(3,), **phrases) for row, source in enumerate(sources_of(12))]
    expected = generate(Network(model), requests, config)
    network = Network(copy.deepcopy(model).to("cuda"))
    assert network.device.type == "cuda"
    found = generate(network, requests, config)
    for one, other in zip(found, expected, strict=True):
        assert [hypothesis.ids for hypothesis in one.hypotheses] == [hypothesis.ids for hypothesis in other.hypotheses]


def test_scores_classes_vectors_and_alignments_stay_on_their_device(lively: Any, sources_of: Any, gpu: None) -> None:
    model, sources = lively(2), sources_of(6)
    here, there = Network(model), Network(copy.deepcopy(model).to("cuda"))
    targets = [source[:-1] for source in sources]
    for one, other in zip(score(there, sources, targets), score(here, sources, targets), strict=True):
        assert one.token_log_probs == pytest.approx(other.token_log_probs, abs=1e-4)
    for answer in (
        lambda network: embed(network, sources),
        lambda network: classify(network, sources, [4, 7, 9], batch_rows=4),
        lambda network: torch.cat([weights.flatten() for weights in align(network, sources, targets)]),
    ):
        torch.testing.assert_close(answer(there).cpu(), answer(here), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "work", [score, align, lambda network, sources, _: embed(network, sources)], ids=["score", "align", "embed"]
)
def test_a_gpu_is_not_waited_for_row_by_row(work: Any, lively: Any, sources_of: Any, gpu: None, monkeypatch) -> None:
    network, sources = Network(copy.deepcopy(lively(2)).to("cuda")), sources_of(20)
    waits: list[Any] = []
    plain = pretended_gpu.carry_out

    def carry_out(func: Any, args: tuple, kwargs: dict) -> Any:
        if func in (torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.item):
            waits.append(func)
        return plain(func, args, kwargs)

    monkeypatch.setattr(pretended_gpu, "carry_out", carry_out)
    work(network, sources, sources)
    assert 1 <= len(waits) <= 2


@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize("has_kernels", [True, False])
def test_where_a_notebook_puts_new_tensors_a_model_stays_where_it_is(
    has_kernels: bool, place: str, lively: Any, sources_of: Any, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_kernels:
        monkeypatch.setattr(native, "kernels", lambda device: None)
    model, sources = lively(2, vocab_size=300).to(place), sources_of(6)

    def answers() -> list:
        network = Network(model, "fp32")
        found = [
            generate(network, sources, GenerationConfig(precision="fp32", **search))
            for search in (dict(beam_size=1), dict(beam_size=3), dict(search="sample", samples=2, top_p=0.9))
        ]
        classes, vectors = classify(network, sources, [4, 7], batch_rows=4), embed(network, sources)
        looks = [look.tolist() for look in align(network, sources, sources)]
        return [
            type(network.output),
            found,
            score(network, sources, sources),
            classes.tolist(),
            vectors.tolist(),
            looks,
        ]

    expected = answers()
    with torch.device("cuda"):  # as torch.set_default_device does
        assert answers() == expected
