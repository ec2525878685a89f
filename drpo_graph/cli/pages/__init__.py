"""What commands print beside the displays of runs."""
