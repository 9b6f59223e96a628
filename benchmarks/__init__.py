"""What `script/bench` runs: each module measures one side of the project and returns a section in Markdown."""
