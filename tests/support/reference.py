"""Slow, literal float64 versions of every formula, for the tests to compare with.

Written from the definitions, not from the package: single images, plain numpy, explicit loops.
Symbols: A activations [K,h,w], D gradients [K,h,w], L raw map [h,w], S heatmap [H,W], x and b
images [B,H,W], p probabilities [C,H,W], G truth, P prediction, R region, V valid pixels [H,W].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Score = Callable[[Array], float]  # image [B,H,W], or activations [K,h,w], -> Y


# --- resizing -----------------------------------------------------------------------------------
def _axis(size: int, out: int, align_corners: bool) -> list[tuple[int, int, float]]:
    """For each output index: left neighbour, right neighbour, share of the right one."""
    result = []
    for i in range(out):
        if align_corners:
            at = i * (size - 1) / (out - 1) if out > 1 else 0.0
        else:
            at = max((i + 0.5) * size / out - 0.5, 0.0)
        left = min(math.floor(at), size - 1)
        result.append((left, min(left + 1, size - 1), at - left))
    return result


def resize(image: Array, size: tuple[int, int], *, align_corners: bool) -> Array:
    """Bilinear, [h,w] -> [H,W]."""
    rows = _axis(image.shape[0], size[0], align_corners)
    columns = _axis(image.shape[1], size[1], align_corners)
    out = np.zeros(size)
    for i, (top, bottom, v) in enumerate(rows):
        for j, (left, right, u) in enumerate(columns):
            upper = (1 - u) * image[top, left] + u * image[top, right]
            lower = (1 - u) * image[bottom, left] + u * image[bottom, right]
            out[i, j] = (1 - v) * upper + v * lower
    return out


# --- raw maps -----------------------------------------------------------------------------------
def weighted(w: Array, A: Array) -> Array:
    """Sum over k of w_k A_k."""
    out = np.zeros(A.shape[1:])
    for k in range(A.shape[0]):
        out += w[k] * A[k]
    return out


def grad_cam(A: Array, D: Array) -> Array:
    return weighted(np.array([D[k].mean() for k in range(len(A))]), A)


def grad_cam_pp(A: Array, D: Array, *, paper: bool = False) -> Array:
    w = np.zeros(len(A))
    for k in range(len(A)):
        total = A[k].sum()
        for i in range(A.shape[1]):
            for j in range(A.shape[2]):
                d = D[k, i, j]
                if d == 0:
                    continue
                below = 2 * d**2 + total * d**3
                if paper:
                    a = d**2 / (below + 1e-6)
                elif abs(below) <= 1e-12 * (2 * d**2 + abs(total * d**3)):
                    a = 0.0
                else:
                    a = d**2 / below
                w[k] += a * max(d, 0.0)
    return weighted(w, A)


def xgrad_cam(A: Array, D: Array, *, paper: bool = False) -> Array:
    w = np.zeros(len(A))
    for k in range(len(A)):
        if paper:
            w[k] = (D[k] * A[k]).sum() / (A[k].sum() + 1e-7)
            continue
        below = A[k].sum()
        if abs(below) <= 1e-6 * np.abs(A[k]).sum():
            below = np.abs(A[k]).sum()
        w[k] = (D[k] * A[k]).sum() / below if below != 0 else 0.0
    return weighted(w, A)


def softmax(values: Array) -> Array:
    shifted = np.exp(values - values.max())
    return np.asarray(shifted / shifted.sum())


def score_weights(A: Array, x: Array, b: Array, score: Score, *, weights: str) -> Array:
    """Channel weights of the strict form: "increase" over the baseline or "softmax" of raw Y."""
    w = np.zeros(len(A))
    s: dict[int, float] = {}
    for k in range(len(A)):
        if A[k].max() == A[k].min():
            continue
        M = resize(A[k], (x.shape[1], x.shape[2]), align_corners=False)
        M = (M - M.min()) / (M.max() - M.min())
        Y = score(M * x + (1 - M) * b)
        s[k] = Y - score(b) if weights == "increase" else Y
    if weights == "softmax":
        values = softmax(np.array(list(s.values())))
        for value, k in zip(values, s, strict=True):
            w[k] = value
        return w
    total = sum(max(value, 0.0) for value in s.values())
    for k, value in s.items():
        w[k] = max(value, 0.0) / total if total > 0 else 0.0
    return w


def score_cam(A: Array, x: Array, b: Array, score: Score, *, weights: str = "increase") -> Array:
    return weighted(score_weights(A, x, b, score, weights=weights), A)


def representatives(A: Array, count: int) -> tuple[list[int], list[int]]:
    """Channels that stand for all, by least squares: each time the one of which the others explain
    least; and whose each channel is, by the highest correlation.
    """
    flat = np.array([(a - a.min()) / (a.max() - a.min()) for a in A]).reshape(len(A), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    chosen: list[int] = []
    for _ in range(count):
        unexplained = []
        for k, row in enumerate(flat):
            rest = row
            if chosen:
                basis = flat[chosen].T
                rest = row - basis @ np.linalg.lstsq(basis, row, rcond=None)[0]
            unexplained.append(-1.0 if k in chosen else float((rest**2).sum()))
        chosen.append(int(np.argmax(unexplained)))
    owner = [
        chosen.index(k)
        if k in chosen
        else int(np.argmax([np.corrcoef(row, flat[j])[0, 1] for j in chosen]))
        for k, row in enumerate(flat)
    ]
    return chosen, owner


def score_cam_paper(A: Array, x: Array, neutral: Array, score: Score) -> Array:
    """Published form: no channel left out, masks with aligned corners, softmax of raw Y."""
    s = np.zeros(len(A))
    for k in range(len(A)):
        M = resize(A[k], (x.shape[1], x.shape[2]), align_corners=True)
        M = (M - M.min()) / (M.max() - M.min() + 1e-8)
        s[k] = score(M * x + (1 - M) * neutral)
    return weighted(softmax(s), A)


def principal(A: Array) -> Array:
    """Projection of the centred channels on the first principal direction, of either sign."""
    K, h, w = A.shape
    rows = np.array([A[k].ravel() - A[k].mean() for k in range(K)]).T  # [h*w, K]
    covariance = np.zeros((K, K))
    for row in rows:
        covariance += np.outer(row, row)
    _, vectors = np.linalg.eigh(covariance)
    return np.asarray((rows @ vectors[:, -1]).reshape(h, w))


def eigen_cam(A: Array, P: Bools) -> Array:
    """First principal component; its sign follows P."""
    L = principal(A)
    seen = resize(L, (P.shape[0], P.shape[1]), align_corners=False)
    covary = ((seen - seen.mean()) * (P - P.mean())).sum()
    return -L if covary < 0 else L


def eigen_grad_cam(A: Array, D: Array, P: Bools) -> Array:
    return eigen_cam(D * A, P)


def seg_eigen_cam(A: Array, D: Array) -> Array:
    L = principal(np.abs(D) * A)
    return -L if abs(L.min()) > L.max() else L


def hires_cam(A: Array, D: Array) -> Array:
    out = np.zeros(A.shape[1:])
    for k in range(len(A)):
        out += D[k] * A[k]
    return out


def layer_cam(A: Array, D: Array) -> Array:
    out = np.zeros(A.shape[1:])
    for k in range(len(A)):
        out += np.maximum(D[k], 0) * A[k]
    return out


def grad_cam_elementwise(A: Array, D: Array) -> Array:
    out = np.zeros(A.shape[1:])
    for k in range(len(A)):
        out += np.maximum(D[k] * A[k], 0)
    return out


def seg_xres_cam(A: Array, D: Array, *, window: int = 4, pool: str = "mean") -> Array:
    """Each pixel's D is that of its window, of what the picture holds of it."""
    K, h, w = A.shape
    out = np.zeros((h, w))
    for k in range(K):
        for i in range(h):
            for j in range(w):
                top, left = i // window * window, j // window * window
                part = D[k, top : top + window, left : left + window]
                out[i, j] += (part.mean() if pool == "mean" else part.max()) * A[k, i, j]
    return out


def ablation_cam(A: Array, rest: Score) -> Array:
    """`rest`: activations [K,h,w] -> Y, by the part of the network after the layer."""
    Y = rest(A)
    w = np.zeros(len(A))
    for k in range(len(A)):
        ablated = A.copy()
        ablated[k] = 0
        w[k] = (Y - rest(ablated)) / abs(Y)
    return weighted(w, A)


def rise(x: Array, b: Array, score: Score, masks: Sequence[Array], *, keep: float) -> Array:
    """Published form: sum of Y(M x + (1 - M) b) M over the masks, by N and their mean."""
    out = np.zeros(x.shape[1:])
    for M in masks:
        out += score(M * x + (1 - M) * b) * M
    return out / (len(masks) * keep)


def rise_centred(x: Array, b: Array, score: Score, masks: Sequence[Array]) -> Array:
    """Mean of Y weighted by what each mask shows of a pixel, less the mean of Y."""
    scores = [score(M * x + (1 - M) * b) for M in masks]
    H, W = x.shape[1:]
    out = np.zeros((H, W))
    for i in range(H):
        for j in range(W):
            seen = [float(M[i, j]) for M in masks]
            if sum(seen) > 0:
                total = sum(Y * m for Y, m in zip(scores, seen, strict=True))
                out[i, j] = total / sum(seen) - sum(scores) / len(scores)
    return out


def occlusion(x: Array, b: Array, score: Score, window: int, stride: int) -> Array:
    """Mean of Y - Y(occluded) over the windows that cover a pixel, the last at the edge."""
    H, W = x.shape[1:]
    out, count = np.zeros((H, W)), np.zeros((H, W))
    for top in sorted({*range(0, H - window + 1, stride), H - window}):
        for left in sorted({*range(0, W - window + 1, stride), W - window}):
            hidden = x.copy()
            inside = np.s_[top : top + window, left : left + window]
            hidden[(slice(None), *inside)] = b[(slice(None), *inside)]
            out[inside] += score(x) - score(hidden)
            count[inside] += 1
    return np.asarray(out / count)


def kernel_weighted(A: Array, rest: Callable[[Array], Array], R: Bools) -> Array:
    """`rest`: activations [K,h,w] -> p_c [H,W], by the part of the network after the layer."""
    o = rest(A)
    w = np.zeros(len(A))
    for k in range(len(A)):
        without, alone = A.copy(), np.zeros_like(A)
        without[k], alone[k] = 0, A[k]
        dependent = sum((o - np.minimum(rest(without), o))[R].tolist())
        independent = sum(np.minimum(rest(alone), o)[R].tolist())
        w[k] = dependent * independent / o[R].sum()
    return weighted(w, np.abs(A))


def effective_channels(w: Array) -> float:
    """exp(entropy(w)), w summing to 1."""
    return math.exp(-sum(float(v) * math.log(v) for v in w if v > 0))


# --- heatmaps -----------------------------------------------------------------------------------
def heatmap(L: Array, size: tuple[int, int]) -> Array:
    """Strict: ReLU, resize, divide by the maximum; zeros when nothing is positive."""
    up = resize(np.maximum(L, 0), size, align_corners=False)
    return up / up.max() if up.max() > 0 else np.zeros(size)


def min_max(image: Array) -> Array:
    image = image - image.min()
    return np.asarray(image / (1e-7 + image.max()))


def heatmap_paper(maps: Sequence[Array], size: tuple[int, int]) -> Array:
    """Paper: each layer's map min-maxed at its own size, resized, averaged, min-maxed again."""
    resized = [resize(min_max(np.maximum(L, 0)), size, align_corners=False) for L in maps]
    mean = np.mean([np.maximum(S, 0) for S in resized], axis=0)
    return min_max(np.asarray(mean))


# --- regions and inputs -------------------------------------------------------------------------
def binarise_threshold(S: Array, t: float, V: Bools) -> Bools:
    return (t < S) & V


def area_count(q: float, V: Bools) -> int:
    return round(q * int(V.sum()))


def keep(B: Bools, x: Array, b: Array) -> Array:
    """Keep(B) = B x + (1 - B) b."""
    out = b.copy()
    for c in range(len(x)):
        for i in range(x.shape[1]):
            for j in range(x.shape[2]):
                if B[i, j]:
                    out[c, i, j] = x[c, i, j]
    return out


def shown(strategy: str, B: Bools, R: Bools, x: Array, b: Array) -> Array:
    """M1, M2, M3: the picture that the model is shown."""
    if strategy == "background_only":
        return keep(~B, x, b)
    if strategy == "highlighted_only":
        return keep(B, x, b)
    return keep(B | R, x, b)


# --- measures -----------------------------------------------------------------------------------
def _log2(value: float) -> float:
    return math.log2(value) if value > 0 else 0.0


def decided(p: Array, c: int, activation: str) -> Bools:
    """The hard mask of c: argmax for softmax, p >= 0.5 for sigmoid."""
    if activation == "softmax":
        return np.asarray(p.argmax(axis=0) == c)
    return np.asarray(p[c] >= 0.5)


def entropy_map(p: Array, c: int, activation: str) -> Array:
    H, W = p.shape[1:]
    out = np.zeros((H, W))
    for i in range(H):
        for j in range(W):
            if activation == "sigmoid":
                q = float(p[c, i, j])
                out[i, j] = -q * _log2(q) - (1 - q) * _log2(1 - q)
            else:
                terms = [-float(q) * _log2(float(q)) for q in p[:, i, j]]
                out[i, j] = sum(terms) / math.log2(len(p))
    return out


def confidence(p: Array, c: int, R: Bools) -> float:
    return float(p[c][R].mean())


def entropy(p: Array, c: int, R: Bools, activation: str) -> float:
    return float(entropy_map(p, c, activation)[R].mean())


def entropy_paper(p: Array, c: int, G: Bools) -> float:
    """Mean over all pixels of G (-p_c log2(p_c + 1e-30)) / log2 C."""
    total = 0.0
    for i in range(p.shape[1]):
        for j in range(p.shape[2]):
            if G[i, j]:
                q = float(p[c, i, j])
                total += -q * math.log2(q + 1e-30) / math.log2(len(p))
    return float(total / (p.shape[1] * p.shape[2]))


def kept(p: Array, c: int, R: Bools, activation: str) -> float:
    return float((decided(p, c, activation) & R).sum() / R.sum())


def entropy_kept(p: Array, c: int, R: Bools, activation: str) -> float:
    where = decided(p, c, activation) & R
    return float(entropy_map(p, c, activation)[where].mean()) if where.any() else math.nan


def certainty(p: Array, c: int, R: Bools, activation: str) -> float:
    share = kept(p, c, R, activation)
    return 0.0 if share == 0 else share * (1 - entropy_kept(p, c, R, activation))


def iou(new: Bools, reference: Bools, V: Bools) -> float:
    union = int(((new | reference) & V).sum())
    return int((new & reference & V).sum()) / union if union else math.nan


def dice(new: Bools, reference: Bools, V: Bools) -> float:
    total = int((new & V).sum()) + int((reference & V).sum())
    return 2 * int((new & reference & V).sum()) / total if total else math.nan


def iou_delta(p_removed: Array, p_original: Array, c: int, G: Bools, V: Bools, activ: str) -> float:
    """IoU(Remove(B)) - IoU(x); negative means that removing B did harm."""
    after = iou(decided(p_removed, c, activ), G, V)
    return after - iou(decided(p_original, c, activ), G, V)


def outline(M: Bools, V: Bools) -> list[tuple[int, int]]:
    """Pixels of M with a valid pixel outside M among their eight neighbours."""
    H, W = M.shape
    found = []
    for i in range(H):
        for j in range(W):
            if M[i, j] and V[i, j]:
                around = [(i + u, j + v) for u in (-1, 0, 1) for v in (-1, 0, 1)]
                inside = [(u, v) for u, v in around if 0 <= u < H and 0 <= v < W]
                if any(V[u, v] and not M[u, v] for u, v in inside):
                    found.append((i, j))
    return found


def boundary_f(new: Bools, reference: Bools, V: Bools, near: float = 3) -> float:
    one, other = outline(new, V), outline(reference, V)
    if not one and not other:
        return math.nan
    if not one or not other:
        return 0.0

    def share(these: list[tuple[int, int]], those: list[tuple[int, int]]) -> float:
        hits = [min(math.hypot(i - u, j - v) for u, v in those) <= near for i, j in these]
        return sum(hits) / len(hits)

    precision, recall = share(one, other), share(other, one)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


# --- curves -------------------------------------------------------------------------------------
def hottest_first(S: Array, movable: Bools) -> list[tuple[int, int]]:
    """Pixels that may go, by falling heat; for maps without ties."""
    places = [(i, j) for i in range(S.shape[0]) for j in range(S.shape[1]) if movable[i, j]]
    return sorted(places, key=lambda place: -S[place])


def deletion(
    S: Array, movable: Bools, x: Array, b: Array, score: Score, steps: int
) -> tuple[list[float], list[float]]:
    """Shares removed, and the score of x with these, the hottest, replaced by b."""
    order = hottest_first(S, movable)
    shares, values = [], []
    for step in range(steps + 1):
        count = round(step * len(order) / steps)
        shown = x.copy()
        for i, j in order[:count]:
            shown[:, i, j] = b[:, i, j]
        shares.append(count / len(order))
        values.append(score(shown))
    return shares, values


def insertion(
    S: Array, movable: Bools, x: Array, b: Array, score: Score, steps: int
) -> tuple[list[float], list[float]]:
    """Shares shown, and the score of b (where pixels may come) with these, the hottest, of x."""
    order = hottest_first(S, movable)
    empty = x.copy()
    for i, j in order:
        empty[:, i, j] = b[:, i, j]
    shares, values = [], []
    for step in range(steps + 1):
        count = round(step * len(order) / steps)
        shown = empty.copy()
        for i, j in order[:count]:
            shown[:, i, j] = x[:, i, j]
        shares.append(count / len(order))
        values.append(score(shown))
    return shares, values


def trapezoids(x: Sequence[float], y: Sequence[float]) -> float:
    return sum((x[k] - x[k - 1]) * (y[k] + y[k - 1]) / 2 for k in range(1, len(x)))


def linear_imputation(x: Array, kept: Bools) -> Array:
    """Each removed pixel is the weighted mean of its neighbours, as one sparse system, solved."""
    B, H, W = x.shape
    holes = [(i, j) for i in range(H) for j in range(W) if not kept[i, j]]
    number = {place: k for k, place in enumerate(holes)}
    left, right = lil_matrix((len(holes), len(holes))), np.zeros((len(holes), B))
    for (i, j), k in number.items():
        for u in (-1, 0, 1):
            for v in (-1, 0, 1):
                place = (i + u, j + v)
                if (u, v) == (0, 0) or not (0 <= place[0] < H and 0 <= place[1] < W):
                    continue
                weight = 1 / 6 if u == 0 or v == 0 else 1 / 12
                left[k, k] += weight
                if kept[place]:
                    right[k] += weight * x[:, place[0], place[1]]
                else:
                    left[k, number[place]] -= weight
    solved = np.asarray(spsolve(left.tocsc(), right)).reshape(len(holes), B)
    out = x.copy()
    for (i, j), k in number.items():
        out[:, i, j] = solved[k]
    return out


def road(S: Array, V: Bools, x: Array, score: Score, *, most: bool) -> list[float]:
    """Scores with 10 ... 90 % imputed, the most or the least relevant ones first; no noise."""
    order = hottest_first(S, V)
    if not most:
        order = order[::-1]
    values = []
    for tenth in range(1, 10):
        kept = V.copy()
        for place in order[: round(tenth / 10 * len(order))]:
            kept[place] = False
        made = linear_imputation(x, kept)
        for i in range(x.shape[1]):
            for j in range(x.shape[2]):
                if not V[i, j]:
                    made[:, i, j] = x[:, i, j]
        values.append(score(made))
    return values


def context(R: Bools, x: Array, b: Array, score: Score, radii: Sequence[int]) -> list[float]:
    """Scores of x within r of R in both directions, b elsewhere."""
    values = []
    for r in radii:
        near = np.zeros_like(R)
        for i, j in zip(*np.nonzero(R), strict=True):
            near[max(i - r, 0) : i + r + 1, max(j - r, 0) : j + r + 1] = True
        values.append(score(keep(near, x, b)))
    return values


def preserved_excess(p: Array, q: Array, V: Bools) -> tuple[float, float]:
    """Of one class' probabilities [H,W], before (p) and after (q)."""
    total = less = more = 0.0
    for i in range(p.shape[0]):
        for j in range(p.shape[1]):
            if V[i, j]:
                total += float(p[i, j])
                less += min(float(p[i, j]), float(q[i, j]))
                more += max(float(q[i, j]) - float(p[i, j]), 0.0)
    return less / total, more / total


def influence(f: Callable[[Array], Array], x: Array, b: Array, activation: str) -> Array:
    """Entry (a, c): relative drop of class c on its own prediction without the one of a."""
    p = f(x)
    K = len(p)
    out = np.full((K, K), math.nan)
    regions = [decided(p, k, activation) for k in range(K)]
    for a in range(K):
        for c in range(K):
            if regions[a].any() and regions[c].any():
                before = confidence(p, c, regions[c])
                out[a, c] = 1 - confidence(f(keep(~regions[a], x, b)), c, regions[c]) / before
    return out


# --- measures of a whole heatmap ----------------------------------------------------------------
def relevance_mass(S: Array, R: Bools, V: Bools) -> float:
    inside = total = 0.0
    for i in range(S.shape[0]):
        for j in range(S.shape[1]):
            if V[i, j]:
                total += S[i, j]
                inside += S[i, j] if R[i, j] else 0.0
    return inside / total


def highest(S: Array, V: Bools, count: int) -> set[tuple[int, int]]:
    """The `count` highest pixels in V of a map without equal ones."""
    places = [(i, j) for i in range(S.shape[0]) for j in range(S.shape[1]) if V[i, j]]
    return set(sorted(places, key=lambda place: -S[place])[:count])


def relevance_rank(S: Array, R: Bools, V: Bools) -> float:
    return sum(bool(R[place]) for place in highest(S, V, int(R.sum()))) / int(R.sum())


def pointing_game(S: Array, R: Bools, V: Bools, tolerance: int = 0) -> float:
    [(i, j)] = highest(S, V, 1)
    near = [(a, b) for a, b in np.argwhere(R) if max(abs(a - i), abs(b - j)) <= tolerance]
    return 1.0 if near else 0.0


def outline_distance(R: Bools) -> Array:
    """Euclidean, to the nearest pixel of R; inside R minus that to the nearest one outside."""
    out = np.zeros(R.shape)
    for i in range(R.shape[0]):
        for j in range(R.shape[1]):
            others = np.argwhere(R[i, j] != R)
            nearest = min(math.hypot(a - i, b - j) for a, b in others)
            out[i, j] = -nearest if R[i, j] else nearest
    return out


def ring_profile(S: Array, R: Bools, V: Bools, width: float) -> list[tuple[float, float]]:
    distance, points = outline_distance(R), []
    for k in range(-100, 100):
        # (k w, (k + 1) w] outside; inside the same of the distance without its sign
        low, high = (k * width, (k + 1) * width) if k >= 0 else (-(k + 1) * width, -k * width)
        far = distance if k >= 0 else -distance
        ring = (far > low) & (far <= high) & V
        if ring.any():
            points.append(((k + 0.5) * width, float(S[ring].mean())))
    return points


def ring_share(S: Array, R: Bools, V: Bools, width: float) -> float:
    distance = outline_distance(R)
    return float(S[(distance > 0) & (distance <= width) & V].sum() / S[V].sum())


def gini(S: Array, V: Bools) -> float:
    """Half the mean absolute difference of all pairs, over the mean."""
    values = S[V]
    total = 0.0
    for a in values:
        for b in values:
            total += abs(a - b)
    return float(total / (2 * len(values) ** 2 * values.mean()))


def effective_area(S: Array, V: Bools) -> float:
    entropy = 0.0
    for value in S[V] / S[V].sum():
        entropy -= value * math.log(value) if value > 0 else 0.0
    return math.exp(entropy) / int(V.sum())


def pearson(a: Array, b: Array) -> float:
    covary = ((a - a.mean()) * (b - b.mean())).mean()
    return float(covary / math.sqrt(a.var() * b.var()))


def max_sensitivity(S: Array, moved: Sequence[Array], V: Bools) -> float:
    return max(math.sqrt(((new - S)[V] ** 2).sum()) / math.sqrt((S[V] ** 2).sum()) for new in moved)


def infidelity(S: Array, removed: Sequence[Bools], drops: Sequence[float]) -> float:
    """With the best beta found by least squares, over the mean square of the drops."""
    heats, dY = np.array([S[mask].sum() for mask in removed]), np.array(drops)
    [beta], *_ = np.linalg.lstsq(heats[:, None], dY, rcond=None)
    return float(((beta * heats - dY) ** 2).mean() / (dY**2).mean())


def ranks(scores: Sequence[float]) -> list[float]:
    """Rank of each score, 1 = lowest; equal scores share the mean of the places they take."""
    out = []
    for score in scores:
        below = sum(other < score for other in scores)
        equal = sum(other == score for other in scores)
        out.append(below + (equal + 1) / 2)
    return out


def ties(scores: Sequence[float]) -> float:
    """Sum over the groups of t equal scores of t^3 - t."""
    return float(sum(scores.count(v) ** 3 - scores.count(v) for v in set(scores)))


def kendall_w(matrix: Array) -> float:
    """W of m rankings (rows) of k candidates, corrected for ties. kendall1939."""
    m, k = matrix.shape
    placed = [ranks(row.tolist()) for row in matrix]
    sums = [sum(row[j] for row in placed) for j in range(k)]
    S = sum((total - m * (k + 1) / 2) ** 2 for total in sums)
    T = sum(ties(row.tolist()) for row in matrix)
    return float(12 * S / (m**2 * (k**3 - k) - m * T))


def friedman(matrix: Array) -> float:
    """Friedman's chi-squared of n blocks (rows) and k treatments, corrected for ties."""
    n, k = matrix.shape
    placed = [ranks(row.tolist()) for row in matrix]
    total = 0.0
    for j in range(k):
        total += (sum(row[j] for row in placed) / n - (k + 1) / 2) ** 2
    plain = 12 * n / (k * (k + 1)) * total
    T = sum(ties(row.tolist()) for row in matrix)
    return float(plain / (1 - T / (n * k * (k**2 - 1))))


# --- stopping when decided ------------------------------------------------------------------------
def evidence_so_far(differences: Sequence[float]) -> list[float]:
    """E after each difference: prod (1 + tanh(b y)), b from the differences before."""
    wealth, out = 1.0, []
    for t, y in enumerate(differences):
        before = [float(value) for value in differences[:t]]
        bet = 0.0
        if before and sum(before) > 0:
            bet = sum(before) / sum(value**2 for value in before) * t / (t + 1)
        wealth *= 1 + math.tanh(bet * y)
        out.append(wealth)
    return out
