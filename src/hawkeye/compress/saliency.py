"""How much it hurts to remove a channel: optimal brain surgeon, and the plain measures it is compared with.

OBS (Hassibi & Stork 1993; per-layer form: Frantar & Alistarh, arXiv 2208.11580): a convolution z = W x reads its
channels through the covariance C of its input patches. Dropping the inputs of block i and re-fitting the rest raises
the squared output error by tr(W_i ([C^-1]_ii)^-1 W_i^T). Rows of W are weighted by the Fisher information of their
outputs, taken from samples of the network's own predictions, so no labels are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hawkeye.compress.groups import Group

_TEMPERATURE = 2.0
_FOLD = 256  # rows, from which on it is cheaper to subtract them once than at every look
_DAMPING = 1e-2  # of the mean variance, added to the diagonal of C: keeps C^-1 finite where inputs never vary


@dataclass
class Moments:
    """Statistics of one convolution, d = in_channels * kernel area.

    Attributes:
        mean: (d,) mean input patch.
        cov: (d, d) covariance of input patches.
        fisher: (out_channels,) summed squared gradient of the sampled loss per picture.
    """

    mean: Tensor
    cov: Tensor
    fisher: Tensor


def sampled_loss(raw: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """A function whose squared gradient is, in expectation, the Fisher information of the detector's own predictions.

    The output's Fisher matrix H is known in closed form, so random signs through a root of H estimate it with far less
    variance than drawn labels, whose rare positives dominate. Class probabilities are softened by a temperature: where
    a score is tiny, H sees no harm in raising it a little, but pruning moves it a lot.

    Args:
        raw: "scores" (B, nc, A) logits and "boxes" (B, 4 * reg_max, A) logits, as the stock head returns them.
        generator: draws the signs.
    """

    def signs(like: Tensor) -> Tensor:
        return torch.randint(0, 2, like.shape, generator=generator).to(like.dtype) * 2 - 1

    scores, boxes = raw["scores"], raw["boxes"]
    soft = (scores.detach() / _TEMPERATURE).sigmoid()
    loss = (scores * signs(soft) * (soft * (1 - soft)).sqrt()).sum()
    b, _, a = boxes.shape
    logits = boxes.view(b, 4, -1, a).permute(0, 3, 1, 2)  # (B, A, 4, reg_max)
    root = logits.detach().softmax(-1).sqrt()
    drawn = root * signs(root)
    drawn = drawn - root.square() * drawn.sum(-1, keepdim=True)  # covariance diag(q) - q q^T
    # A box counts as much as the network believes that there is something; the root, since the gradient is squared.
    confidence = scores.detach().sigmoid().amax(1).sqrt()
    return loss + (logits * drawn * confidence[:, :, None, None]).sum()


def collect(
    model: nn.Module,
    layers: Iterable[str],
    batches: Iterable[Tensor],
    *,
    positions: int = 160,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Moments]:
    """Input covariance and output Fisher information of each named convolution.

    Half of the positions are drawn evenly, half in proportion to the Fisher information at the position: detections
    depend on few places, and an even draw would spend the fit on background.

    Args:
        model: detector in eval mode; parameters need no gradients.
        layers: names of convolutions.
        batches: (B, 3, H, W) float32 in [0, 1].
        positions: output positions per picture and layer at most.
        seed: of positions and sampled labels.
        advance: called with the number of pictures done.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, list[Tensor]] = {}
    shifts: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    grads: dict[str, Tensor] = {}
    handles = []

    def forward_hook(name: str, _module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        inputs[name] = args[0].detach()
        output.register_hook(partial(grads.__setitem__, name))

    for name in layers:
        handles.append(model.get_submodule(name).register_forward_hook(partial(forward_hook, name)))
    count = 0
    try:
        for batch in batches:
            batch = batch.contiguous(memory_format=torch.channels_last).requires_grad_(True)
            with torch.enable_grad():
                sampled_loss(model(batch)[1], generator).backward()
            count += len(batch)
            for name, x in inputs.items():
                conv, grad = model.get_submodule(name), grads[name]
                patches = _patches(conv, x, grad, positions, generator)
                n, d = patches.shape
                # About the first batch's mean: in single precision a variance far below the squared mean would be lost.
                shift = shifts.setdefault(name, patches.mean(0))
                patches = patches - shift
                total = sums.setdefault(
                    name, [torch.zeros(d, d), torch.zeros(d), torch.zeros(conv.out_channels), torch.zeros(())]
                )
                total[0].addmm_(patches.T, patches)
                total[1] += patches.sum(0)
                total[2] += grad.square().sum((0, 2, 3))
                total[3] += n
            inputs.clear()
            grads.clear()
            advance(len(batch))
    finally:
        for handle in handles:
            handle.remove()
    result = {}
    for name, (square, total, fisher, n) in sums.items():
        offset = (total / n).double()
        cov = (square / n).double() - torch.outer(offset, offset)
        result[name] = Moments(shifts[name].double() + offset, cov, (fisher / count).double())
    return result


def _patches(conv: nn.Conv2d, x: Tensor, grad: Tensor, positions: int, generator: torch.Generator) -> Tensor:
    """Input patches at drawn output positions, (B * P, d) float32, ordered as `conv.weight.flatten(1)`."""
    b, _, h, w = grad.shape
    energy = grad.square().sum(1).flatten(1)  # (B, H * W)
    take = min(positions, h * w)
    weight = 0.5 / (h * w) + 0.5 * energy / energy.sum(1, keepdim=True).clamp_min(1e-30)
    drawn = torch.multinomial(weight, take, generator=generator)  # (B, P)
    (kh, kw), (sh, sw), (ph, pw) = conv.kernel_size, conv.stride, conv.padding
    x = nn.functional.pad(x, (pw, pw, ph, ph))
    row = (drawn // w * sh)[:, :, None, None] + torch.arange(kh)[None, None, :, None]  # (B, P, kh, 1)
    col = (drawn % w * sw)[:, :, None, None] + torch.arange(kw)[None, None, None, :]  # (B, P, 1, kw)
    index = torch.arange(b)[:, None, None, None]
    return x.permute(0, 2, 3, 1)[index, row, col].flatten(0, 1).permute(0, 3, 1, 2).flatten(1).float()


class ObsScorer:
    """Channel scores that follow every removal exactly, with the weights compensated in closed form.

    A removal changes all of C^-1 by a product of p rows, p the inputs that a channel is read by. Where d is thousands
    that would be a pass through hundreds of megabytes for each channel, so rows are kept and subtracted from what is
    looked at: C^-1 as it was is only read, and scorers share it.
    """

    def __init__(self, model: nn.Module, groups: Iterable[Group], moments: Mapping[str, Moments],
                 inverse: dict[tuple[str, int], Tensor] | None = None) -> None:  # fmt: skip
        """`inverse` keeps what takes longest, by name and size, for the next one with the same moments."""
        known = {} if inverse is None else inverse
        self._moments, self._model = moments, model
        self._groups = list(groups)
        self._readers = {name for group in self._groups for name in group.consumers}
        self._weight: dict[str, Tensor] = {}
        self._inverse: dict[str, _Inverse] = {}
        self._fisher = {name: moments[name].fisher.clone() for name in self._readers}
        self._area: dict[str, int] = {}
        for name in self._readers:
            conv = model.get_submodule(name)
            self._weight[name] = conv.weight.detach().double().flatten(1).clone()
            self._area[name] = conv.kernel_size[0] * conv.kernel_size[1]
            key = name, len(moments[name].cov)
            if key not in known:
                known[key] = torch.cholesky_inverse(torch.linalg.cholesky(_damped(moments[name].cov)))
            self._inverse[name] = _Inverse(known[key])

    def _blocks(self, group: Group, name: str) -> Tensor:
        """Columns of the consumer's weight per group channel, (width, r * area)."""
        area = self._area[name]
        return (group.consumers[name][:, :, None] * area + torch.arange(area)).flatten(1)

    def scores(self, group: Group, alive: Tensor) -> Tensor:
        """Rise of the weighted squared error if a channel went, (width,); infinite where it has gone already."""
        total = torch.full((group.width,), torch.inf, dtype=torch.float64)
        index = alive.nonzero().flatten()
        total[index] = 0
        for name in group.consumers:
            blocks = self._blocks(group, name)[index]  # (n, p)
            weight = self._weight[name][:, blocks].permute(1, 0, 2) * self._fisher[name].sqrt()[None, :, None]
            factor = torch.linalg.cholesky(self._inverse[name].blocks(blocks))
            half = torch.linalg.solve_triangular(factor, weight.transpose(1, 2), upper=False)
            total[index] += half.square().sum((1, 2))
        return total

    def remove_(self, group: Group, channel: int) -> set[str]:
        """Take a channel out and compensate; returns the convolutions whose state has changed."""
        for name in group.consumers:
            block, weight = self._blocks(group, name)[channel], self._weight[name]
            weight -= weight[:, block] @ self._inverse[name].remove_(block)
            weight[:, block] = 0
        for name in group.producers:  # what a removed output computed no longer matters
            if name in self._readers:
                self._fisher[name][channel] = 0
        return {*group.consumers, *group.producers}

    def refit_(self, keep: dict[str, Tensor]) -> None:
        """Write least-squares weights over the kept inputs into the model (before it is cut); biases follow the mean.

        W_S = W C[:, S] C[S, S]^-1; the change of the mean output goes into the convolution's bias or, where it has
        none, into the running mean of the BatchNorm behind it.
        """
        for name in self._readers:
            conv, moments = self._model.get_submodule(name), self._moments[name]
            alive = torch.ones(conv.weight[0].numel(), dtype=torch.bool)
            for group in self._groups:
                if name in group.consumers and group.name in keep:
                    gone = torch.ones(group.width, dtype=torch.bool)
                    gone[keep[group.name]] = False
                    alive[self._blocks(group, name)[gone].flatten()] = False
            if bool(alive.all()):
                continue
            cov = _damped(moments.cov)
            weight = conv.weight.detach().double().flatten(1)
            kept = torch.linalg.solve(cov[alive][:, alive], cov[alive] @ weight.T).T
            refit = torch.zeros_like(weight)
            refit[:, alive] = kept
            shift = (weight - refit) @ moments.mean  # (out_channels,)
            conv.weight.data.copy_(refit.view_as(conv.weight))
            if conv.bias is not None:
                conv.bias.data += shift.to(conv.bias)
            else:
                norm = self._model.get_submodule(name.rpartition(".")[0]).bn
                norm.running_mean -= shift.to(norm.running_mean)


class _Inverse:
    """An inverse covariance from which inputs are taken out: C^-1 less the product of the rows that went."""

    def __init__(self, whole: Tensor) -> None:
        """`whole`, (d, d) float64, is not changed."""
        self._whole = whole
        self._rows = self._gains = torch.zeros(0, len(whole), dtype=whole.dtype)

    def blocks(self, index: Tensor) -> Tensor:
        """The blocks (n, p, p) on the diagonal at index (n, p)."""
        found = self._whole[index[:, :, None], index[:, None, :]]
        return found - torch.einsum("rna,rnb->nab", self._rows[:, index], self._gains[:, index])

    def remove_(self, block: Tensor) -> Tensor:
        """Take inputs (p,) out; returns by how much each of the others stands in for them, (p, d)."""
        rows = self._whole[block] - self._rows[:, block].T @ self._gains
        gain = torch.linalg.solve(rows[:, block], rows)
        self._rows, self._gains = torch.cat([self._rows, rows]), torch.cat([self._gains, gain])
        if len(self._rows) >= _FOLD:
            self._whole = self._whole - self._rows.T @ self._gains
            self._rows, self._gains = self._rows[:0], self._gains[:0]
        return gain


def _damped(cov: Tensor) -> Tensor:
    diagonal = cov.diagonal()
    return cov + torch.diag(torch.full_like(diagonal, _DAMPING * float(diagonal.mean()) + 1e-12))


class StaticScorer:
    """Scores that do not change as channels go: L1 norm, BatchNorm scale, or Taylor expansion of the loss.

    l1: Li et al., arXiv 1608.08710. bn: Liu et al., Network Slimming, arXiv 1708.06519.
    taylor: Molchanov et al., arXiv 1906.10771 (weight times gradient, squared).
    """

    def __init__(self, model: nn.Module, groups: Iterable[Group], method: str) -> None:
        self._scores = {}
        for group in groups:
            total = torch.zeros(group.width, dtype=torch.float64)
            for name in group.producers:
                conv = model.get_submodule(name)
                if method == "l1":
                    total += conv.weight.detach().double().abs().flatten(1).sum(1)
                elif method == "bn":
                    total += model.get_submodule(name.rpartition(".")[0]).bn.weight.detach().double().abs()
                else:
                    total += (conv.weight.detach() * conv.weight.grad).double().flatten(1).sum(1).square()
            # Layers differ in scale by orders of magnitude; relative to their own mean they can be compared.
            self._scores[group.name] = total if method == "taylor" else total / total.mean().clamp_min(1e-30)

    def scores(self, group: Group, alive: Tensor) -> Tensor:
        """Importance of each channel, (width,); infinite where it has gone already."""
        return torch.where(alive, self._scores[group.name], torch.inf)

    def remove_(self, group: Group, channel: int) -> set[str]:
        """Nothing to follow."""
        return set()

    def refit_(self, keep: dict[str, Tensor]) -> None:
        """These methods do not compensate."""
