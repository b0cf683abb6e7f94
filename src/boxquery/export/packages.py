"""Which packages an export needs, and which combinations are known not to work."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from boxquery.errors import UserError
from boxquery.limits import check_above_zero

ONNX, OPENVINO = "onnx", "openvino"
#: what a file of a target ends in
ENDINGS = {ONNX: ".onnx", OPENVINO: ".xml"}
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
#: on how many int8 measures ranges by default
CALIBRATION_IMAGES = 100
#: the first that has all operators of the family, GridSample and LayerNormalization among them
OPSET = 18
#: by target: packages, the oldest version known to work, and what is wrong with older ones
NEEDED = {
    ONNX: {"onnx": ("1.18", "does not know the graph's version"), "onnxscript": ("0.5", "lacks operators"),
           "onnxruntime": ("1.22", "cannot read the graph's version")},
    OPENVINO: {"onnx": ("1.18", "does not know the graph's version"), "onnxscript": ("0.5", "lacks operators"),
               "openvino": ("2025.2", "was never tried")},
}  # fmt: skip
#: what makes int8, for both targets
QUANTISER = "onnxruntime"
#: of torch, whose exporter used another method before
TORCH = "2.9"


def check_combination(target: str, precision: str) -> None:
    """Raise ``UserError`` where the packages installed, or a target and a precision, do not go together."""
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision!r}: choose one of {', '.join(PRECISIONS)}")
    if (target, precision) == (ONNX, "bf16"):
        raise UserError("--to onnx --precision bf16: onnxruntime has no bf16 kernels for CPUs; use --to openvino, or fp32")
    if (target, precision) == (ONNX, "fp16"):
        raise UserError("--to onnx --precision fp16: onnxruntime has few fp16 kernels for CPUs; use --to openvino, or fp32")
    installed = {"torch": version("torch")}
    if Version(installed["torch"]) < Version(TORCH):
        raise UserError(f"torch {installed['torch']} exports by another method; pip install 'torch>={TORCH}'")
    extra = "export" if target == ONNX else "openvino"
    needed, what = NEEDED[target], f"--to {target}"
    if precision == "int8" and QUANTISER not in needed:
        needed, extra, what = {**needed, QUANTISER: NEEDED[ONNX][QUANTISER]}, f"{extra},export", f"{what} --precision int8"
    for package, (oldest, why) in needed.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            raise UserError(f"{what} needs the package {package}: pip install 'boxquery[{extra}]'") from None
        if Version(found) < Version(oldest):
            raise UserError(f"{package} {found} {why}; pip install '{package}>={oldest}'")


def check_calibration(precision: str, calibrate: object, images: int | None) -> None:
    """Raise ``UserError`` where int8 has no images to measure ranges on, or another precision has some."""
    if precision == "int8" and calibrate is None:
        raise UserError("int8 measures ranges on images, or scenes: give --calibrate DATA, which holds some like those to come")
    if precision != "int8" and (calibrate is not None or images is not None):
        flag = "--calibrate" if calibrate is not None else "--calibration-images"
        raise UserError(f"{flag} is for int8 alone, and the precision is {precision}; add --precision int8, or leave it out")
    check_above_zero(calibration_images=images)
