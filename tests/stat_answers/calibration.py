"""Calibration: which public function answers a case."""
import numpy as np

from qwen_eval.stats.calibration import brier, calibration, top_label


def errors(confidence, correct, given):
    found = calibration(confidence, correct, np.random.default_rng(0), given["n_bins"], n_simulations=100)
    return [found.ece.value, found.rmsce.value, found.mce.value]


def binary(case, find):
    return errors(case["inputs"]["conf"], case["inputs"]["correct"], case["inputs"])


def multiclass(case, find):
    return errors(*top_label(case["inputs"]["probs"], case["inputs"]["target"]), case["inputs"])


def brier_score(case, find): return brier(case["inputs"]["p"], case["inputs"]["y"]).value


ANSWERS = {"ECE/RMSCE/MCE": binary, "top-label ECE/RMSCE/MCE": multiclass, "Brier score": brier_score}
