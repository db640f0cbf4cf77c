"""Which sharing pays among experts: perplexity of a small mixture with 10 to 50 % of its experts' parameters removed.

``python benchmarks/mixture.py FOLDER`` trains the mixture, then ``python benchmarks/experts.py FOLDER`` measures (ten
minutes on two cores). All arms change the experts of all blocks and nothing else, from the same calibration windows:

- ``auto``: what the package does by itself, which is one of the next two for every block;
- ``narrow``: two bases for all experts of a block, one width for what they read and write;
- ``expert-factors``: plain factors of every expert's matrices, ranks chosen from losses with few statistics per expert;
- ``narrow, two widths``: the same with widths of their own for both, which no native class of experts can run;
- ``narrow, own coefficients``: the same as narrow, with the weights that read refitted to the inputs of each expert;
- ``factors, full statistics``: the same with second moments of every expert, pivoted;
- ``factors, one rank``: the same, plain, one rank for all experts of a block, as products for groups of tokens need;
- ``svd-llm per expert``: plain factors at one rank for all, whitened with the inputs of each expert;
- ``mobe``: MoBE (arXiv 2508.05257): gate and up are a matrix of each expert times a mixture of 4 shared ones, fitted to
  the weights by gradient descent; down stays;
- ``drop``: the experts that the calibration text visits least are left out.

Factors are multiplied out, since only perplexity is measured here; parameters are those that would be stored.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from basis_sharing import compress
from basis_sharing.calibration.windows import EvaluationText
from basis_sharing.evaluation.perplexity import measure, prepare_text
from basis_sharing.linalg.truncation import Truncation, Weighted, truncate
from basis_sharing.linalg.whitening import Whitening, cholesky_whitening
from basis_sharing.models.decoder import describe
from basis_sharing.models.family import Experts
from basis_sharing.results.measures import Perplexity
from basis_sharing.weightings.base import shrink_
from common import TEST_TEXT, VALID_TEXT, machine, need_data, save

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
LENGTH, CALIBRATION, EVALUATION = 256, 128, 256  # tokens, windows, windows
MOBE_BASES, MOBE_STEPS = 4, 600


@dataclass(frozen=True)
class Visits:
    """The tokens that one expert is given.

    Attributes:
        x: What it reads, shape ``[tokens, width]``.
        routing: Its weight for each of them, shape ``[tokens, 1]``.
        g: The gradient of the loss at the sum that it adds to, shape ``[tokens, width]``.
    """

    x: Tensor
    routing: Tensor
    g: Tensor


class Recorded:
    """What the experts of all blocks read, and the gradients at what they write, for some windows."""

    def __init__(self, model: Any, experts: Sequence[Experts], ids: Tensor) -> None:
        self.tokens = ids.numel()
        self._seen: dict[str, list[tuple[Tensor, ...]]] = {each.name: [] for each in experts}
        handles = [model.get_submodule(each.name).register_forward_hook(self._hook(each.name)) for each in experts]
        for window in ids:
            logits = model(input_ids=window[None], use_cache=False).logits[0]
            nn.functional.cross_entropy(logits[:-1], window[1:], reduction="sum").backward()
        model.zero_grad()
        for handle in handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            x, index, routing = (one.detach() for one in args)
            output.register_hook(lambda g: self._seen[name].append((x, index, routing, g)))

        return hook

    def of(self, experts: Experts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return inputs, chosen experts, routing weights and gradients of all tokens."""
        x, index, routing, g = (torch.cat(parts) for parts in zip(*self._seen[experts.name], strict=True))
        return x, index, routing, g

    def visits(self, experts: Experts) -> Iterator[Visits]:
        """Yield the tokens of every expert."""
        x, index, routing, g = self.of(experts)
        for number in range(experts.count):
            token, place = (index == number).nonzero(as_tuple=True)
            yield Visits(x[token], routing[token, place, None], g[token])


def moment(rows: Tensor, count: int, share: float) -> Tensor:
    """Return the mean second moment of rows, shrunk as the planner's weighting does it."""
    return shrink_((rows.double().T @ rows.double()) / max(count, 1), share)


def matrices(model: Any, recorded: Recorded, experts: Experts) -> Iterator[tuple[int, str, Weighted]]:
    """Yield the number, the name and the weighted matrix of every matrix of every expert of a block."""
    module = model.get_submodule(experts.name)
    _, _, _, g = recorded.of(experts)
    H = moment(g, 2 * recorded.tokens, 0.1)
    for number, seen in enumerate(recorded.visits(experts)):
        read, down = module.gate_up_proj[number].detach(), module.down_proj[number].detach()
        hidden = (seen.x @ read.T).requires_grad_(True)
        neurons = module._apply_gate(hidden)
        (gradient,) = torch.autograd.grad(((neurons @ down.T) * seen.routing * seen.g).sum(), hidden)
        G = cholesky_whitening(moment(seen.x, recorded.tokens, 0.01))
        yield number, "gate_up_proj", Weighted(read.T.double(), G, moment(gradient, 2 * len(gradient), 0.1))
        weighted = (neurons * seen.routing).detach()
        yield (
            number,
            "down_proj",
            Weighted(down.T.double(), cholesky_whitening(moment(weighted, recorded.tokens, 0.01)), H),
        )


def allocated(losses: Sequence[Tensor], prices: Sequence[Tensor], budget: float) -> list[int]:
    """Return the option of every item with the least total loss within a budget, by bisection of a price."""
    low, high = 0.0, 1e3
    for _ in range(200):
        price = (low * high) ** 0.5 if low > 0 else high * 1e-12
        chosen = [int((loss + price * cost).argmin()) for loss, cost in zip(losses, prices, strict=True)]
        if sum(float(cost[at]) for cost, at in zip(prices, chosen, strict=True)) > budget:
            low = price
        else:
            high = price
    return [int((loss + high * cost).argmin()) for loss, cost in zip(losses, prices, strict=True)]


class Study:
    """The mixture, its statistics, and the arms."""

    def __init__(self, folder: Path, calibration: int, evaluation: int) -> None:
        self.folder, self.windows = folder, calibration
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.experts = describe(self.model).experts
        self.text = self.prepared(TEST_TEXT, evaluation)
        self.recorded = Recorded(self.model, self.experts, self.prepared(VALID_TEXT, calibration).input_ids)
        self.parameters = sum(each.d_in * each.d_out for each in self.experts)
        self._matrices = [
            (each, number, name, member, truncate([member]))
            for each in self.experts
            for number, name, member in matrices(self.model, self.recorded, each)
        ]

    def prepared(self, text: str, windows: int) -> EvaluationText:
        """Return windows of a text."""
        return prepare_text(self.model, self.tokenizer, text, windows=windows, length=LENGTH)

    def changed(self, weights: dict[str, dict[str, Tensor]]) -> Any:
        """Return a copy of the model with other weights, by module and name."""
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for path, own in weights.items():
                for name, weight in own.items():
                    model.get_submodule(path).get_parameter(name).copy_(weight)
        return model

    def copies(self) -> dict[str, dict[str, Tensor]]:
        """Return copies of all experts' weights."""
        return {
            each.name: {name: p.detach().clone() for name, p in self.model.get_submodule(each.name).named_parameters()}
            for each in self.experts
        }

    def auto(self, ratio: float) -> tuple[Any, float]:
        """Return the model with experts as the package treats them, and the fraction of parameters removed."""
        return self._compressed(ratio, None)

    def narrow(self, ratio: float) -> tuple[Any, float]:
        """Return the model with narrow experts."""
        return self._compressed(ratio, "experts")

    def expert_factors(self, ratio: float) -> tuple[Any, float]:
        """Return the model with factors of every expert."""
        return self._compressed(ratio, "expert-factors")

    def _compressed(self, ratio: float, treatments: str | None) -> tuple[Any, float]:
        model, result = compress(
            copy.deepcopy(self.model),
            ratio,
            tokenizer=self.tokenizer,
            roles="experts",
            treatments=treatments,
            calibration=VALID_TEXT,
            windows=self.windows,
            length=LENGTH,
            calibration_dtype="float32",
            refit="never",
        )
        return model, result.ratio_reached

    def own_coefficients(self, ratio: float) -> tuple[Any, float]:
        """Return narrow experts whose weights that read are refitted to the inputs of each expert."""
        model, removed = self.narrow(ratio)
        for each in self.experts:
            module = model.get_submodule(each.name)
            if not hasattr(module, "input_basis"):
                continue
            A = module.input_basis.weight.detach().double().T
            everything = moment(self.recorded.of(each)[0], self.recorded.tokens, 0.01)
            native = self.model.get_submodule(each.name).gate_up_proj.detach()
            for number, seen in enumerate(self.recorded.visits(each)):
                own, few = len(seen.x), 4 * each.d_in
                G = (moment(seen.x, own, 0.0) * own + everything * few) / (own + few)
                C = torch.linalg.solve(A.T @ G @ A, A.T @ G @ native[number].T.double())
                with torch.no_grad():
                    module.experts.gate_up_proj[number].copy_(C.T)
        return model, removed

    def two_widths(self, ratio: float) -> tuple[Any, float]:
        """Return experts between bases of a width of their own for what they read and what they write."""
        sides: list[tuple[Experts, str, Truncation]] = []
        for each in self.experts:
            x, _, _, g = self.recorded.of(each)
            y, u = self._outputs(each)
            for name, rows, gradients in (("gate_up_proj", x, u), ("down_proj", y, g)):
                S: Whitening = cholesky_whitening(moment(rows, self.recorded.tokens, 0.01))
                H = moment(gradients, 2 * self.recorded.tokens, 0.1)
                member = Weighted(torch.eye(each.d_in, dtype=torch.float64), S, H)
                sides.append((each, name, truncate([member])))
        losses, prices = [], []
        for each, name, found in sides:
            numbers = self.model.get_submodule(each.name).get_parameter(name).numel() // each.d_in
            widths = torch.arange(each.d_in + 1, dtype=torch.float64)
            cost = (widths * (each.d_in + numbers)).clamp_max(numbers * each.d_in)
            losses.append(torch.where(cost < numbers * each.d_in, found.losses, torch.zeros(()).double()))
            prices.append(cost)
        chosen = allocated(losses, prices, (1 - ratio) * self.parameters)
        weights = self.copies()
        for (each, name, found), width, loss in zip(sides, chosen, losses, strict=True):
            if loss[width] == 0:
                continue
            (C,) = found.coefficients(width)
            P = (found.basis[:, :width] @ C).float()
            own = weights[each.name]
            own[name] = own[name] @ P.T if name == "gate_up_proj" else P.T @ own[name]
        kept = sum(float(cost[at]) for cost, at in zip(prices, chosen, strict=True))
        return self.changed(weights), 1 - kept / self.parameters

    def _outputs(self, each: Experts) -> tuple[Tensor, Tensor]:
        """Return the weighted sums that the experts of a block write, and the gradients by what they read."""
        x, index, routing, g = self.recorded.of(each)
        x = x.clone().requires_grad_(True)
        y = self.model.get_submodule(each.name)(x, index, routing)
        (u,) = torch.autograd.grad((y * g).sum(), x)
        return y.detach(), u

    def factors(self, ratio: float) -> tuple[Any, float]:
        """Return factors of every expert's matrices, pivoted, with ranks chosen from their losses."""
        losses, prices = [], []
        for _, _, _, member, found in self._matrices:
            (a, b), ranks = member.shape, torch.arange(len(found.losses), dtype=torch.float64)
            prices.append(ranks * (a + b - ranks))
            losses.append(found.losses)
        chosen = allocated(losses, prices, (1 - ratio) * self.parameters)
        kept = sum(float(cost[at]) for cost, at in zip(prices, chosen, strict=True))
        return self._multiplied_out([found for *_, found in self._matrices], chosen), 1 - kept / self.parameters

    def one_rank(self, ratio: float) -> tuple[Any, float]:
        """Return plain factors of every expert's matrices, with one rank for all experts of a block."""
        groups: dict[tuple[str, str], list[int]] = {}
        for place, (each, _, name, _, _) in enumerate(self._matrices):
            groups.setdefault((each.name, name), []).append(place)
        losses, prices = [], []
        for places in groups.values():
            *_, member, found = self._matrices[places[0]]
            (a, b), ranks = member.shape, torch.arange(len(found.losses), dtype=torch.float64)
            cost = (ranks * (a + b)).clamp_max(float(a * b))
            total = torch.stack([self._matrices[place][-1].losses for place in places]).sum(0)
            losses.append(torch.where(cost < a * b, total, torch.zeros(()).double()))
            prices.append(len(places) * cost)
        chosen = allocated(losses, prices, (1 - ratio) * self.parameters)
        kept = sum(float(cost[at]) for cost, at in zip(prices, chosen, strict=True))
        ranks_of: dict[int, int] = {}
        for places, rank, loss in zip(groups.values(), chosen, losses, strict=True):
            full = len(loss) - 1 if loss[rank] == 0 else rank
            ranks_of |= dict.fromkeys(places, full)
        order = [ranks_of[place] for place in range(len(self._matrices))]
        return self._multiplied_out([found for *_, found in self._matrices], order), 1 - kept / self.parameters

    def svd_llm(self, ratio: float) -> tuple[Any, float]:
        """Return plain factors at one rank for all, whitened with the inputs of each expert."""
        chosen, kept, truncated = [], 0.0, []
        for _, _, _, member, _ in self._matrices:
            a, b = member.shape
            rank = int((1 - ratio) * a * b / (a + b))
            truncated.append(truncate([Weighted(member.W, member.S)]))
            chosen.append(rank)
            kept += rank * (a + b)
        return self._multiplied_out(truncated, chosen), 1 - kept / self.parameters

    def _multiplied_out(self, truncated: Sequence[Truncation], ranks: Sequence[int]) -> Any:
        weights = self.copies()
        for (each, number, name, _, _), found, rank in zip(self._matrices, truncated, ranks, strict=True):
            (C,) = found.coefficients(rank)
            weights[each.name][name][number] = (found.basis[:, :rank] @ C).T.float()
        return self.changed(weights)

    def mobe(self, ratio: float) -> tuple[Any, float]:
        """Return MoBE's form of gate and up: a matrix of each expert times a mixture of shared ones."""
        weights, kept = self.copies(), 0.0
        for each in self.experts:
            own = weights[each.name]
            gate_up, down = own["gate_up_proj"], own["down_proj"]
            count, double, d_in = gate_up.shape
            budget = (1 - ratio) * (gate_up.numel() + down.numel()) - down.numel()
            rank = int(budget / 2 / (count * double // 2 + MOBE_BASES * d_in))
            if rank < 1:
                return None, 0.0
            for half in range(2):
                rows = slice(half * double // 2, (half + 1) * double // 2)
                own["gate_up_proj"][:, rows] = mobe_fit(gate_up[:, rows], rank)
            kept += 2 * rank * (count * double // 2 + MOBE_BASES * d_in) + down.numel()
        return self.changed(weights), 1 - kept / self.parameters

    def drop(self, ratio: float) -> tuple[Any, float]:
        """Return the model whose least visited experts are left out."""
        model = copy.deepcopy(self.model)
        for each in self.experts:
            visits = torch.tensor([len(seen.x) for seen in self.recorded.visits(each)])
            dropped = visits.argsort()[: round(ratio * each.count)]
            router = model.get_submodule(f"{each.name.rpartition('.')[0]}.gate")
            router.forward = without(router, dropped)
        return model, round(ratio * self.experts[0].count) / self.experts[0].count


def without(router: Any, dropped: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Return the forward pass of a router that never chooses some experts."""

    def forward(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = nn.functional.linear(hidden.reshape(-1, hidden.shape[-1]), router.weight)
        logits[:, dropped] = -torch.inf
        values, indices = logits.float().softmax(-1).topk(router.top_k, dim=-1)
        return logits, values / values.sum(-1, keepdim=True), indices

    return forward


def mobe_fit(weight: Tensor, rank: int) -> Tensor:
    """Return the approximation of matrices ``[experts, out, in]`` by A_e silu(sum_j a_ej B_j), fitted with Adam."""
    count, _, d_in = weight.shape
    generator = torch.Generator().manual_seed(0)
    scale = weight.std()
    _, _, V = torch.linalg.svd(weight.reshape(-1, d_in), full_matrices=False)
    B = V[:rank].repeat(MOBE_BASES, 1, 1) + 0.02 * torch.randn(MOBE_BASES, rank, d_in, generator=generator)
    mix = torch.randn(count, MOBE_BASES, generator=generator) * 0.1 + 1 / MOBE_BASES
    A = torch.linalg.lstsq(V[:rank].T.expand(count, d_in, rank), weight.transpose(1, 2) / scale).solution.transpose(
        1, 2
    )
    parameters = [tensor.clone().requires_grad_(True) for tensor in (A, mix, B)]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, MOBE_STEPS)

    def product() -> Tensor:
        A, mix, B = parameters
        return A @ nn.functional.silu(torch.einsum("ej,jri->eri", mix, B))

    for _ in range(MOBE_STEPS):
        optimizer.zero_grad()
        (product() - weight / scale).square().mean().backward()
        optimizer.step()
        schedule.step()
    return product().detach() * scale


ARMS: dict[str, Callable[[Study, float], tuple[Any, float]]] = {
    "auto": Study.auto,
    "narrow": Study.narrow,
    "expert-factors": Study.expert_factors,
    "narrow, own coefficients": Study.own_coefficients,
    "narrow, two widths": Study.two_widths,
    "factors, full statistics": Study.factors,
    "factors, one rank": Study.one_rank,
    "svd-llm per expert": Study.svd_llm,
    "mobe": Study.mobe,
    "drop": Study.drop,
}


def of_result(found: Perplexity) -> dict[str, Any]:
    """Return what a result keeps of a measurement: not where the text was."""
    return found.model_dump(exclude={"text"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the mixture that benchmarks/mixture.py has written")
    parser.add_argument("--ratios", type=lambda text: tuple(map(float, text.split(","))), default=RATIOS)
    parser.add_argument("--arms", type=lambda text: text.split(";"), default=list(ARMS))
    parser.add_argument("--windows", type=int, default=CALIBRATION)
    parser.add_argument("--evaluation-windows", type=int, default=EVALUATION)
    options = parser.parse_args()
    need_data()
    if not (options.folder / "config.json").is_file():
        sys.exit(f"error: {options.folder} is no model: python benchmarks/mixture.py {options.folder} trains it.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    study = Study(options.folder, options.windows, options.evaluation_windows)
    original = measure(study.model, study.text)
    rows: list[dict[str, Any]] = []
    result = {"machine": machine(), "windows": options.windows, "original": of_result(original), "rows": rows}
    half = options.folder.with_name(f"{options.folder.name}-half")
    if half.is_dir():
        trained = AutoModelForCausalLM.from_pretrained(half, dtype=torch.float32).eval()
        result["half-trained"] = measure(trained, study.text).perplexity
    print(f"original {original.perplexity:.2f}, half-trained {result.get('half-trained')}", flush=True)
    for ratio in options.ratios:
        for arm in options.arms:
            model, removed = ARMS[arm](study, ratio)
            if model is None:
                continue
            found = measure(model, study.text)
            nats = found.nats_per_token - original.nats_per_token
            rows.append({"arm": arm, "ratio": ratio, "removed": removed, "nats": nats, **of_result(found)})
            multiple = found.perplexity / original.perplexity
            print(f"{ratio:.0%} {arm:26} removed {removed:6.1%}  {nats:+.4f} nats  {multiple:.3f} x", flush=True)
            save("experts", result)


if __name__ == "__main__":
    main()
