from .drawing import (
    png as png,
)
from .export import (
    study_tables as study_tables,
    to_json as to_json,
    to_latex as to_latex,
    to_markdown as to_markdown,
)
from .figures import (
    evidence_maps as evidence_maps,
    evidence_measures as evidence_measures,
    evidence_methods as evidence_methods,
)
from .overlays import (
    overlay as overlay,
)
from .page import (
    render as render,
)
from .table import (
    Cell as Cell,
    Column as Column,
    Table as Table,
)
from .task_tables import (
    comparison_table as comparison_table,
)
from .terminal import (
    escape as escape,
    graceful_stop as graceful_stop,
    print_analysis as print_analysis,
    print_check as print_check,
    print_comparison as print_comparison,
    print_fills as print_fills,
    print_table as print_table,
    progress_bar as progress_bar,
)

__all__: list[str]
