"""From numbers to sentences, tables and figures of reports."""
