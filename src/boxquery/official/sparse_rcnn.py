"""PeizeSun/SparseR-CNN (MIT): the keys of its released checkpoints, which are detectron2's.

``r50_100pro_3x_model.pth`` and ``r50_300pro_3x_model.pth``; the weights are under ``model``.
"""

from boxquery.official.patterns import Rules, multihead_attention

STAGE = r"head\.head_series\.(\d+)\."
#: their stages of the backbone, each of which is a level of the pyramid: strides 4 to 32
STAGES = (2, 3, 4, 5)
#: of the images
CONSTANTS = (r"pixel_(mean|std)",)


def keys(model) -> Rules:
    """The authors' keys (patterns) -> ours."""
    rules = [
        (r"backbone\.bottom_up\.stem\.conv1\.weight", "backbone.body.conv1.weight"),
        (r"backbone\.bottom_up\.stem\.conv1\.norm\.(.+)", r"backbone.body.bn1.\1"),
    ]
    for level, stage in enumerate(STAGES):
        theirs, ours = rf"backbone\.bottom_up\.res{stage}\.(\d+)\.", rf"backbone.body.layer{level + 1}.\1."
        rules += [
            (theirs + r"conv(\d)\.weight", ours + r"conv\2.weight"),
            (theirs + r"conv(\d)\.norm\.(.+)", ours + r"bn\2.\3"),
            (theirs + r"shortcut\.weight", ours + "downsample.0.weight"),
            (theirs + r"shortcut\.norm\.(.+)", ours + r"downsample.1.\2"),
            (rf"backbone\.fpn_lateral{stage}\.(.+)", rf"neck.projections.{level}.0.\1"),
            (rf"backbone\.fpn_output{stage}\.(.+)", rf"neck.outputs.{level}.\1"),
        ]
    residuals = {"norm1": "self_residual", "norm2": "read_residual", "norm3": "ffn_residual"}
    return [
        *rules,
        (r"init_proposal_boxes\.weight", "queries.anchors"),
        (r"init_proposal_features\.weight", "queries.content"),
        *multihead_attention(STAGE + "self_attn", r"layers.\1.self_attention.attention"),
        (STAGE + r"inst_interact\.(.+)", r"layers.\1.read.\2"),
        (STAGE + r"(linear\d\..+)", r"layers.\1.ffn.\2"),
        *((rf"{STAGE}{theirs}\.(.+)", rf"layers.\1.{ours}.norm.\2") for theirs, ours in residuals.items()),
        (STAGE + r"cls_module\.(.+)", r"heads.\1.class_tower.\2"),
        (STAGE + r"class_logits\.(.+)", r"heads.\1.classes.\2"),
        (STAGE + r"reg_module\.(.+)", r"heads.\1.boxes.\2"),
        (STAGE + r"bboxes_delta\.(.+)", rf"heads.\1.boxes.{len(model.head(0).boxes) - 1}.\2"),
    ]


def options(tensors) -> tuple[int | None, dict]:
    """The class count and our options, as read from the tensors; eight heads are taken for granted."""
    first = "head.head_series.0."
    queries, dim = tensors["init_proposal_features.weight"].shape
    logits = f"{first}class_logits.bias"
    return len(tensors[logits]) if logits in tensors else None, {
        "decoder_layers": len([key for key in tensors if key.endswith(".bboxes_delta.bias")]),
        "num_queries": queries,
        "hidden_dim": dim,
        "ffn_dim": len(tensors[f"{first}linear1.bias"]),
        # no map of the pyramid is dilated
        "dilation": False,
        "dynamic_dim": len(tensors[f"{first}inst_interact.norm1.bias"]),
        "backbone": "resnet101" if "backbone.bottom_up.res4.22.conv1.weight" in tensors else "resnet50",
    }
