"""Secure aggregation, as pure functions: a server learns a noisy sum and no single row.

`grid` turns rows into integers, `discrete` draws their noise, `accounting` says how much
and what it costs. `shares` splits secrets, `masks` derives keys and masks, `neighbours`
draws the graph and its thresholds, `plan` is what all parties agree on, and `secure` has
the exchanges report, confirm and open, and the unmasking. `directory` has the keys of the
members, `expected` what a sum must be by the configuration. `rows` is one release in
integers, with masks (``secagg.mode=on``) or without (``sum``).

Imports: common.privacy.
"""
