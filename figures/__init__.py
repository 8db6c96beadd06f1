"""Drawing: figures take tidy tables and never compute what they show."""
