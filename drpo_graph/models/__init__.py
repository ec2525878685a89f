"""Models behind endpoints: clients, what they can do, how many calls they get, what their failures mean."""
