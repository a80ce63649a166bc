"""The dashboard. Importing it needs gradio; nothing else in the package does."""

from numprune.ui.starting import without_stubs

without_stubs()
