"""From files of cells to a Label Studio project and back: reading, cutting, import, export."""
