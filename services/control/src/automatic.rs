//! Verdicts become ops.
