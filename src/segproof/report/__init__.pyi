from .page import (
    render as render,
)
from .terminal import (
    escape as escape,
    graceful_stop as graceful_stop,
    print_cards as print_cards,
    print_check as print_check,
    print_comparison as print_comparison,
    print_fills as print_fills,
    print_status as print_status,
    print_tables as print_tables,
    progress_bar as progress_bar,
)

__all__: list[str]
