"""The ground floor both pools stand on: types, pages, attention, models, sampling, transfer."""
