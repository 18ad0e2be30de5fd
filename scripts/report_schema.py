"""Write the JSON Schema of report.json into the package: run it after a change to sslprune/report/values.py."""

from __future__ import annotations

from sslprune.files import write_json
from sslprune.report import SCHEMA_FILE, report_schema

if __name__ == "__main__":
    print(write_json(SCHEMA_FILE, report_schema()))
