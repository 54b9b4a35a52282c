"""The service: live detection and counting behind a web page and an API, for CPUs.

    core.py (`Service`)  everything that the service can do, without HTTP; the API and the pages both call it
      schemas    what goes in and comes out          config    one TOML file, environment, flags
      sources    addresses checked and pinned        live      sessions, rules, counts on their way to the store
      models     what can be served, and detectors   switching one engine hands over to the next; A/B
      store      SQLite                              alerts    rules that tell somebody
      metrics    histograms, why it is slow          runs      compression runs, read from disk
    api.py, kserve.py    routes                      security  tokens, roles, origins, limits
    app.py               puts them together          pages/    NiceGUI

Nothing here imports torch or `hawkeye.compress`; a test holds it to that.
"""
