"""The Open WebUI Ollama Pack: what its plugins are made of.

Its errors, of which a plugin ships those that it can raise:

PackError
├── TableError                  a row of a table that an admin wrote cannot be used
│   ├── AliasTableError             of an alias table
│   ├── BudgetTableError            of the budget table
│   ├── NodeTableError              of the `nodes` valve
│   └── WarmTableError              of the `warm` valve
├── AliasUnavailableError       an alias matched, but none of its models can answer this user
├── BudgetStoreError            the store of the budgets did not do what it was asked
├── BudgetSpentError            a chat is not answered, as a budget is used up
├── SettingError                a setting cannot be used
├── StoreError                  a store of the cache did not do what it was asked
│   ├── StoreDownError              it cannot be reached, or failed
│   └── StoreFullError              it takes no more, and still answers
├── EntryUnreadableError        what a store of the cache holds was changed
├── LeaderLostError             a generation that was shared was lost half-way
├── AudienceError               an audience cannot be read
├── ChatBodyError               a chat body holds what cannot be put into Ollama's form
├── RouterUnavailableError      gpu_router cannot be asked
├── ModelRefusedError           a model asked through Open WebUI gave an error
├── ClientLeftError             the client has closed its connection
├── ModelClosedError            a user may not use the model that would answer
├── StoredFileError             no such file, or none that this user may read
├── UploadError                 a request has no file in it that can be taken
│   └── UploadTooLargeError         too many bytes
├── NoRoomError                 the server has no place for an upload
├── RoutingError                a request cannot be given to a node
│   ├── NoNodeError                 none has the model
│   ├── NodesDownError              those that have it do not answer
│   ├── QueueFullError              too many wait already
│   ├── WaitedTooLongError          none became free in time
│   ├── NoAnswerError               all that were tried failed before the first token
│   │   └── RequestFailsError           several did in the same way: the request is the likely reason
│   └── AnswerBrokenError           one failed after it
├── SpeechError                 a recording was not transcribed
│   ├── AudioError                  the recording is at fault
│   │   ├── EmptyAudioError             no byte in it
│   │   ├── NotAudioError               neither audio nor video
│   │   ├── NoAudioTrackError           a video without sound
│   │   ├── SampleRateError             a sampling rate that nobody records with
│   │   ├── ZeroLengthError             a track without a sample
│   │   ├── NoSpeechError               nobody says anything
│   │   ├── AudioTooLargeError          too many bytes
│   │   └── AudioTooLongError           it lasts too long
│   ├── LanguageTagError            no language that can be used
│   ├── NoAttachmentError           nothing to transcribe
│   ├── TranscriptFormatError       no format of transcripts
│   ├── UnknownSpeechModelError     no model that is listed
│   ├── SpeechQueueFullError        too many recordings wait already
│   │   └── SpeechShareFullError        too many of one user
│   └── SpeechEngineError           the engine does not do its work
│       ├── SpeechDependencyError       a package is missing
│       ├── SpeechModelMissingError     the model is nowhere
│       ├── SpeechModelUnusableError    the model cannot be loaded
│       ├── SpeechLanguageError         the engine does not know the language
│       ├── CloudNotAllowedError        recordings would leave this machine
│       ├── SpeechEngineFaultError      it failed while it worked
│       └── SpeechServerError           a transcription server
│           ├── SpeechServerUnreachableError  no connection
│           ├── SpeechServerTimeoutError      a limit ran out
│           ├── SpeechServerBusyError         it asks for patience
│           ├── SpeechServerKeyError          it wants another key
│           ├── SpeechServerTooLargeError     a piece is too large for it
│           ├── SpeechServerRefusedError      it will not take the request
│           └── SpeechServerFaultError        it failed, talked garbage or hung up
└── NodeError                   a node did not do what it was asked
    ├── RetryableNodeError          another node may do it
    │   ├── NodeUnreachableError        no connection
    │   │   └── NodeCertificateError        no TLS
    │   ├── NodeTimeoutError            a limit ran out
    │   ├── NodeBusyError               its queue is full
    │   ├── NodeFaultError              it failed, talked garbage or hung up
    │   ├── NodeGoneError               it has stopped answering
    │   ├── WrongModelError             it answers with another model
    │   └── ModelNotFoundError          it does not have the model
    └── RequestRefusedError         it will not take this request, and no other node would
"""
