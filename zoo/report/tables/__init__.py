"""Tables of a report as formatted cells, shared by HTML and Markdown."""
