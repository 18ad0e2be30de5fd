"""Values: the verdict on a run, the gates that judge it, and the forms in which it is told."""

from sslprune.report.curve import curve_rows
from sslprune.report.figures import Control, Decoding, Figures, OnnxCheck, Size, Variant, read_controls
from sslprune.report.gates import compare_reports, judge
from sslprune.report.inspection import (
    AxisFacts,
    AxisSensitivity,
    BudgetLook,
    BudgetSensitivity,
    Inspection,
    Least,
    Sensitivity,
)
from sslprune.report.judgement import Baseline, Change, Gate
from sslprune.report.rehearsal import PhasePlan, RunPlan
from sslprune.report.values import (
    SCHEMA_FILE,
    AxisChange,
    Budget,
    CurvePoint,
    Equivalence,
    RepackResult,
    Report,
    Staircase,
    report_schema,
)
from sslprune.report.words import (
    CONTROL_WORDS,
    MEASURE_WORDS,
    budget_text,
    decoding_text,
    prediction_text,
    realised,
    setting_text,
    verdict_text,
    why_not_faster,
)
from sslprune.values.machine import environment, has_vnni
from sslprune.values.measure import SCHEMA, Absent, Latency, OperatorTime, Profile, Speedup

__all__ = [
    "CONTROL_WORDS",
    "MEASURE_WORDS",
    "SCHEMA",
    "SCHEMA_FILE",
    "Absent",
    "AxisChange",
    "AxisFacts",
    "AxisSensitivity",
    "Baseline",
    "Budget",
    "BudgetLook",
    "BudgetSensitivity",
    "Change",
    "Control",
    "CurvePoint",
    "Decoding",
    "Equivalence",
    "Figures",
    "Gate",
    "Inspection",
    "Latency",
    "Least",
    "OnnxCheck",
    "OperatorTime",
    "PhasePlan",
    "Profile",
    "RepackResult",
    "Report",
    "RunPlan",
    "Sensitivity",
    "Size",
    "Speedup",
    "Staircase",
    "Variant",
    "budget_text",
    "compare_reports",
    "curve_rows",
    "decoding_text",
    "environment",
    "has_vnni",
    "judge",
    "prediction_text",
    "read_controls",
    "realised",
    "report_schema",
    "setting_text",
    "verdict_text",
    "why_not_faster",
]
