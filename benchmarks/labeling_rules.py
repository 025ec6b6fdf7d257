"""Published rules that choose the next images to label, for `labeling.py`. All return up to `count` candidates.

Arguments as of `tl.annotation.selection.choose_images`; `x` are the candidates' directions: standardized features of
unit length (M, D), `p` their probabilities (M, C).
"""

import numpy as np
from sklearn.cluster import AgglomerativeClustering, KMeans


def margins(p: np.ndarray) -> np.ndarray:
    top = np.partition(p, -2, axis=1)[:, -2:]
    return top[:, 1] - top[:, 0]


def random(x, p, count, seed):
    return np.random.default_rng(seed).permutation(len(x))[:count]


def margin(x, p, count, seed):
    """Settles 2009; Bahri et al. 2022, "Is margin all you need?"."""
    return np.argsort(margins(p), kind="stable")[:count]


def entropy(x, p, count, seed):
    """Settles 2009."""
    return np.argsort((p * np.log(np.maximum(p, 1e-12))).sum(axis=1), kind="stable")[:count]


def least_confident(x, p, count, seed):
    """Lewis & Gale 1994."""
    return np.argsort(p.max(axis=1), kind="stable")[:count]


def badge(x, p, count, seed):
    """Ash et al. 2020: k-means++ on gradients of the last layer, (p - onehot) x features, as products of inner ones."""
    a = p.copy()
    a[np.arange(len(p)), p.argmax(axis=1)] -= 1
    norms = (a**2).sum(axis=1) * (x**2).sum(axis=1)
    chosen = [int(norms.argmax())]
    distances = np.full(len(x), np.inf)
    rng = np.random.default_rng(seed)
    while len(chosen) < count:
        i = chosen[-1]
        distances = np.minimum(distances, np.maximum(norms + norms[i] - 2 * (a @ a[i]) * (x @ x[i]), 0))
        distances[chosen] = 0
        if distances.sum() <= 0:
            break
        chosen.append(int(rng.choice(len(x), p=distances / distances.sum())))
    return np.array(chosen)


def margin_k_center(x, p, count, seed, factor=10):
    """The smallest margins, then greedily the farthest of them from those chosen (Sener & Savarese 2018)."""
    near = margin(x, p, factor * count, seed)
    chosen, distances = [0], np.full(len(near), np.inf)
    while len(chosen) < min(count, len(near)):
        distances = np.minimum(distances, 1 - x[near] @ x[near[chosen[-1]]])
        distances[chosen] = -1
        chosen.append(int(distances.argmax()))
    return near[chosen]


def margin_k_means(x, p, count, seed, factor=10, weighted=True):
    """Zhdanov 2019: k-means of the smallest margins, weighted by uncertainty; the nearest image to each center."""
    near = margin(x, p, factor * count, seed)
    if len(near) <= count:
        return near
    weights = 1 - margins(p[near]) + 1e-6 if weighted else None
    means = KMeans(count, n_init=1, random_state=seed).fit(x[near], sample_weight=weights)
    return _nearest(near, x, means)


def margin_k_means_3(x, p, count, seed):
    return margin_k_means(x, p, count, seed, factor=3)


def margin_k_means_5(x, p, count, seed):
    return margin_k_means(x, p, count, seed, factor=5)


def cluster_margin(x, p, count, seed):
    """Citovsky et al. 2021: the smallest margins in turn from the clusters of similar images, small clusters first."""
    near = margin(x, p, 10 * count, seed)
    if len(near) <= count:
        return near
    clusters = AgglomerativeClustering(min(len(near), 2 * count), linkage="average", metric="cosine").fit_predict(
        x[near]
    )
    queues = sorted(([i for i in range(len(near)) if clusters[i] == c] for c in set(clusters)), key=len)
    chosen = []
    while len(chosen) < count:
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(near[queue.pop(0)])
    return np.array(chosen)


def typical(x, count, seed, neighbors=20):
    """TypiClust, Hacohen et al. 2022: in each of `count` clusters, the image whose neighbors are the nearest."""
    means = KMeans(count, n_init=1, random_state=seed).fit(x)
    chosen = []
    for c in np.argsort(-np.bincount(means.labels_, minlength=count), kind="stable"):
        rows = np.flatnonzero(means.labels_ == c)
        k = min(neighbors, len(rows) - 1)
        similar = x[rows] @ x[rows].T
        typicality = -np.partition(-similar, k, axis=1)[:, : k + 1].mean(axis=1)
        chosen.append(rows[typicality.argmax()])
    return np.array(chosen)


def centers(x, count, seed):
    """The image nearest to each center of k-means."""
    return _nearest(np.arange(len(x)), x, KMeans(count, n_init=1, random_state=seed).fit(x))


def k_center(x, count, seed):
    """Greedy k-center, Sener & Savarese 2018."""
    chosen, distances = [int((x @ x.mean(axis=0)).argmax())], np.full(len(x), np.inf)
    while len(chosen) < count:
        distances = np.minimum(distances, 1 - x @ x[chosen[-1]])
        chosen.append(int(distances.argmax()))
    return np.array(chosen)


def _nearest(near, x, means):
    similar = x[near] @ means.cluster_centers_.T
    chosen = []
    for c in range(similar.shape[1]):
        rows = np.flatnonzero(means.labels_ == c)
        if len(rows):
            chosen.append(near[rows[similar[rows, c].argmax()]])
    return np.array(chosen)


NEXT = {
    f.__name__: f
    for f in (
        random,
        margin,
        entropy,
        least_confident,
        badge,
        margin_k_center,
        margin_k_means,
        margin_k_means_3,
        margin_k_means_5,
        cluster_margin,
    )
}
FIRST = {
    "random": lambda x, count, seed: random(x, None, count, seed),
    "typical": typical,
    "centers": centers,
    "k_center": k_center,
}
