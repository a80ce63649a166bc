"""The dashboard. Importing it needs gradio; nothing else in the package does."""
