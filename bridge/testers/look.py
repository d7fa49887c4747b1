"""Colours, type and spacing of the page. Nothing is fetched: the fonts are those of the visitor's machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes.utils import sizes

CSS = Path(__file__).with_name("style.css")
SANS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "PingFang SC", "Noto Sans CJK SC", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", "monospace")


def theme() -> Any:
    """The theme of all components."""
    made = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=sizes.radius_md,
        text_size=sizes.text_md,
        font=list(SANS),
        font_mono=list(MONO),
    )
    return made.set(
        body_background_fill="#f4f6f8",
        body_background_fill_dark="#0b1220",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_label_background_fill="transparent",
        block_label_border_width="0px",
        block_title_text_weight="600",
        block_title_text_size="*text_sm",
        block_info_text_size="*text_xs",
        input_background_fill="#ffffff",
        input_background_fill_dark="#111b2e",
        input_border_color="*neutral_300",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_dark="#14b8a6",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="#1a2740",
        button_secondary_border_color="*neutral_300",
        checkbox_label_background_fill="#ffffff",
        checkbox_label_background_fill_dark="#111b2e",
        checkbox_label_background_fill_selected="#ccfbf1",
        checkbox_label_background_fill_selected_dark="#134e4a",
        checkbox_label_border_color="*neutral_300",
        checkbox_label_border_color_selected="#0f766e",
    )
