"""The parameters of a stack as attributes, for type checkers: what `Module.__getattr__` finds."""

from .._base.arrays import Array


class StackAttributes:
    """Those of the first four layers; of deeper ones type checkers know ``layer.parameters["weight_ih_l4"]``."""

    weight_ih_l0: Array
    weight_hh_l0: Array
    bias_ih_l0: Array
    bias_hh_l0: Array
    peephole_l0: Array
    gain_ih_l0: Array
    gain_hh_l0: Array
    gain_c_l0: Array
    bias_c_l0: Array
    weight_hr_l0: Array
    weight_ih_l0_reverse: Array
    weight_hh_l0_reverse: Array
    bias_ih_l0_reverse: Array
    bias_hh_l0_reverse: Array
    peephole_l0_reverse: Array
    gain_ih_l0_reverse: Array
    gain_hh_l0_reverse: Array
    gain_c_l0_reverse: Array
    bias_c_l0_reverse: Array
    weight_hr_l0_reverse: Array

    weight_ih_l1: Array
    weight_hh_l1: Array
    bias_ih_l1: Array
    bias_hh_l1: Array
    peephole_l1: Array
    gain_ih_l1: Array
    gain_hh_l1: Array
    gain_c_l1: Array
    bias_c_l1: Array
    weight_hr_l1: Array
    weight_ih_l1_reverse: Array
    weight_hh_l1_reverse: Array
    bias_ih_l1_reverse: Array
    bias_hh_l1_reverse: Array
    peephole_l1_reverse: Array
    gain_ih_l1_reverse: Array
    gain_hh_l1_reverse: Array
    gain_c_l1_reverse: Array
    bias_c_l1_reverse: Array
    weight_hr_l1_reverse: Array

    weight_ih_l2: Array
    weight_hh_l2: Array
    bias_ih_l2: Array
    bias_hh_l2: Array
    peephole_l2: Array
    gain_ih_l2: Array
    gain_hh_l2: Array
    gain_c_l2: Array
    bias_c_l2: Array
    weight_hr_l2: Array
    weight_ih_l2_reverse: Array
    weight_hh_l2_reverse: Array
    bias_ih_l2_reverse: Array
    bias_hh_l2_reverse: Array
    peephole_l2_reverse: Array
    gain_ih_l2_reverse: Array
    gain_hh_l2_reverse: Array
    gain_c_l2_reverse: Array
    bias_c_l2_reverse: Array
    weight_hr_l2_reverse: Array

    weight_ih_l3: Array
    weight_hh_l3: Array
    bias_ih_l3: Array
    bias_hh_l3: Array
    peephole_l3: Array
    gain_ih_l3: Array
    gain_hh_l3: Array
    gain_c_l3: Array
    bias_c_l3: Array
    weight_hr_l3: Array
    weight_ih_l3_reverse: Array
    weight_hh_l3_reverse: Array
    bias_ih_l3_reverse: Array
    bias_hh_l3_reverse: Array
    peephole_l3_reverse: Array
    gain_ih_l3_reverse: Array
    gain_hh_l3_reverse: Array
    gain_c_l3_reverse: Array
    bias_c_l3_reverse: Array
    weight_hr_l3_reverse: Array

    initial_h: Array
