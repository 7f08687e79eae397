"""``python -m fokker demo``: vMF fits, mixtures and out-of-distribution scores on real photographs and digits."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import bessel, cases, vmf

NEEDED = {"sklearn": "scikit-learn", "scipy": "scipy", "matplotlib": "matplotlib", "PIL": "pillow"}
_PATIENCE = 5.0  # seconds that SciPy's fit may take


def job(out: Path, seed: int, *, largest: int = 10**6, fraction: float = 1.0, stride: int = 3) -> dict[str, Any]:
    """All of the demo; ``largest`` dimension, ``fraction`` of patches, ``stride`` of heat maps make it smaller."""
    from .demo_data import SIZES, photographs
    from .demo_plots import draw_densities, draw_errors

    out.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    sizes = [s._replace(count=int(s.count * fraction)) for s in SIZES if s.dim <= largest]
    print("Photographs china.jpg and flower.jpg of scikit-learn; left halves to fit, right halves to test.")
    print("A patch is a direction: mean removed, divided by its length. Digits: pixels repeated to fill the patch.")
    photos = photographs()
    data = {size.dim: _draw(photos, size, random) for size in sizes}
    results: dict[str, Any] = {
        "fits": [_fit(dim, rows["flower"]["fit"]) for dim, rows in _heading(_FITS, data)],
        "scores": {
            size.dim: _scores(size, data[size.dim], seed) for size, _ in _heading(_SCORES, {s: 0 for s in sizes})
        },
    }
    print("Below 0.5 the other photograph's patches are denser under the mixture than its own unseen ones are:")
    print("a density alone does not tell where a patch is from. The ratio of two does.")
    results["curve"] = _curve(results["scores"][192]["flower"]["mixture"])
    results["maps"] = _maps(photos, next(s for s in sizes if s.dim == 192), results["scores"][192], stride)
    results["errors"] = log_iv_errors()
    _tell_errors(results["errors"])
    results["pictures"] = [out / "densities.png", out / "log_iv_errors.png"]
    draw_densities(results["pictures"][0], results, photos)
    draw_errors(results["pictures"][1], results["errors"])
    return results


def _heading(text: str, rows: dict[Any, Any]) -> Any:
    print(f"\n{text}", flush=True)
    return rows.items()


def _draw(photos: dict[str, np.ndarray], size: Any, random: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """For each photograph, rows to fit (left half) and to test (right half); and the digits."""
    from .demo_data import digits, directions, halves, patches

    out = {}
    for name, photo in photos.items():
        left, right = halves(photo)
        out[name] = {
            "fit": directions(patches(left, size, size.count, random)),
            "test": directions(patches(right, size, size.count // 2, random)),
        }
    out["digits"] = {"test": directions(digits(size, size.count // 2, random))}
    return out


# ---- one vMF at each dimension, beside SciPy -----------------------------------------------------------------------
_FITS = (
    "One vMF on patches of flower.jpg, beside scipy.stats.vonmises_fisher.fit (log-likelihoods: nats a patch)\n"
    "    dim patches |       fokker    time   log-lik. |        SciPy    time   log-lik. (its own)  ours at its kappa"
)


def _fit(dim: int, x: np.ndarray) -> dict[str, Any]:
    rows = torch.from_numpy(x)
    vmf.fit(rows[:8])  # the first call loads code
    start = time.perf_counter()
    mean, kappa = vmf.fit(rows)
    ours = time.perf_counter() - start
    level = float(vmf.log_prob(rows.double(), mean.double(), kappa.double()).mean())
    theirs = _bounded(lambda: _scipy_fit(x.astype(np.float64)), _PATIENCE)
    row = {"dim": dim, "count": len(x), "kappa": float(kappa), "seconds": ours, "level": level, "scipy": theirs}
    line = f"{dim:7d} {len(x):7d} | {row['kappa']:12.8g} {1e3 * ours:5.1f}ms {level:10.2f} |"
    if theirs is None:
        print(f"{line} no answer within {_PATIENCE:.0f} s", flush=True)
        return row
    at = float(vmf.log_prob(rows.double(), torch.from_numpy(theirs["mean"]), theirs["kappa"]).mean())
    row["ours_at_scipy"] = at
    took = f"{1e3 * theirs['seconds']:5.1f}ms"
    print(f"{line} {theirs['kappa']:12.8g} {took} {theirs['level']:10.2f} {at:27.2f}", flush=True)
    return row


def _scipy_fit(x: np.ndarray) -> dict[str, Any]:
    from scipy.stats import vonmises_fisher

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        mean, kappa = vonmises_fisher.fit(x)
        seconds = time.perf_counter() - start
        level = float(vonmises_fisher(mean, kappa).logpdf(x).mean())
    return {"mean": mean, "kappa": float(kappa), "seconds": seconds, "level": level}


def _bounded(work: Callable[[], Any], seconds: float) -> Any:
    """The result of ``work``, or None if it takes longer; an exception in it is raised here."""
    box: list[Any] = []

    def target() -> None:
        try:
            box.append((work(), None))
        except Exception as error:
            box.append((None, error))

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    if not box:
        return None
    result, error = box[0]
    if error is not None:
        raise error
    return result


# ---- mixtures, and scores of what they have not seen -----------------------------------------------------------------
_SCORES = (
    "Mixtures of vMF fitted to one photograph, and how well the log density tells its unseen half from other patches\n"
    "(AUROC, 0.5 is chance; in brackets for one vMF). 'ratio': by log p - log q, the two photographs' mixtures.\n"
    "    dim   K | fitted to  log-lik. over uniform: fit, unseen |    other photo         digits  ratio"
)


def _auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(np.r_[np.ones(len(inside)), np.zeros(len(outside))], np.r_[inside, outside]))


def _scores(size: Any, rows: dict[str, dict[str, np.ndarray]], seed: int) -> dict[str, Any]:
    from ..estimators import VonMisesFisherMixture

    uniform = float(vmf.log_normalizer(size.dim, torch.zeros((), dtype=torch.float64)))
    models: dict[str, Any] = {}
    for name in ("china", "flower"):
        options = {"tol": 1e-4 * size.dim, "random_state": seed, "verbose": True}
        mixture = VonMisesFisherMixture(size.components, **options).fit(rows[name]["fit"])
        models[name] = mixture, VonMisesFisherMixture(1, **options).fit(rows[name]["fit"])
    out: dict[str, Any] = {}
    for name, other in (("china", "flower"), ("flower", "china")):
        sets = {"unseen": rows[name]["test"], "other": rows[other]["test"], "digits": rows["digits"]["test"]}
        logs = {key: models[name][0].score_samples(x) - uniform for key, x in sets.items()}
        single = {key: models[name][1].score_samples(x) for key, x in sets.items()}
        ratio = [logs[key] + uniform - models[other][0].score_samples(sets[key]) for key in ("unseen", "other")]
        row = out[name] = {
            "mixture": models[name][0],
            "logs": logs,
            "fit": models[name][0].lower_bound_ - uniform,
            "auroc": {key: _auroc(logs["unseen"], logs[key]) for key in ("other", "digits")},
            "auroc_single": {key: _auroc(single["unseen"], single[key]) for key in ("other", "digits")},
            "auroc_ratio": _auroc(*ratio),
        }
        both = " ".join(f"{row['auroc'][key]:.3f} ({row['auroc_single'][key]:.3f})" for key in ("other", "digits"))
        print(
            f"{size.dim:7d} {size.components:3d} | {name:9s} {row['fit']:26.1f} {logs['unseen'].mean():8.1f} | {both}"
            f"  {row['auroc_ratio']:.3f}",  # the same from either side
            flush=True,
        )
    return out


def _curve(mixture: Any) -> np.ndarray:
    curve = mixture.log_likelihood_curve_
    shown = ", ".join(f"{curve[i]:.2f} ({i})" for i in sorted({0, 1, 2, 5, 10, 20, len(curve) - 1}) if i < len(curve))
    print(f"\nEM on 192-dimensional patches of flower.jpg, mean log-likelihood (step): {shown}", flush=True)
    return curve


def _maps(photos: dict[str, np.ndarray], size: Any, scores: dict[str, Any], stride: int) -> dict[str, np.ndarray]:
    """log density over uniform of the patch around each place of both photographs, under the mixture of flower.jpg."""
    from .demo_data import every_patch

    uniform = float(vmf.log_normalizer(size.dim, torch.zeros((), dtype=torch.float64)))
    out = {}
    for name, photo in photos.items():
        rows, shape = every_patch(photo, size, stride)
        out[name] = (scores["flower"]["mixture"].score_samples(rows) - uniform).reshape(shape)
        out[name][~rows.any(1).reshape(shape)] = np.nan  # flat: no direction
    return out


# ---- log I_v(x) beside SciPy -----------------------------------------------------------------------------------------
def log_iv_errors() -> dict[str, np.ndarray]:
    """Errors |e| / max(|truth|, 1) of log I on the truth table's grid (ball arithmetic): fokker's and SciPy's."""
    from scipy.special import ive

    t = cases.table("bessel_f64")
    main = t["set"] == list(t["sets"]).index("main")
    v, x, hi, lo = (t[key][main] for key in ("v", "x", "log_iv_hi", "log_iv_lo"))
    finite = np.isfinite(hi)
    v, x, hi, lo = v[finite], x[finite], hi[finite], lo[finite]
    with np.errstate(all="ignore"):
        answers = {"fokker": bessel.log_iv(v, x), "scipy": np.log(ive(v, x)) + x}
        errors = {name: np.abs((got - hi) - lo) / np.maximum(np.abs(hi), 1) for name, got in answers.items()}
    return {"v": v, "x": x, **errors}


def _tell_errors(errors: dict[str, np.ndarray]) -> None:
    print(f"\nlog I_v(x) at {len(errors['v'])} points, v in 0 .. 1e6, x in 1e-8 .. 1e8, against ball arithmetic:")
    for name, label in (("fokker", "fokker.bessel.log_iv"), ("scipy", "log(scipy.special.ive) + x")):
        e = errors[name]
        good = e[np.isfinite(e)]
        print(
            f"  {label:27s} median error {np.median(good):.1e}, worst {good.max():.1e}, "
            f"nan or inf at {np.mean(~np.isfinite(e)):.0%} of the points",
            flush=True,
        )
