"""All families of MIL operations; importing this registers their handlers."""

from deploy.mil import (
    ops_activation,
    ops_classify,
    ops_conv,
    ops_elementwise,
    ops_gather,
    ops_layout,
    ops_linear,
    ops_quant,
    ops_recurrent,
    ops_reduce,
    ops_resize,
)

FAMILIES = (
    ops_conv,
    ops_elementwise,
    ops_activation,
    ops_resize,
    ops_layout,
    ops_gather,
    ops_reduce,
    ops_linear,
    ops_quant,
    ops_recurrent,
    ops_classify,
)
