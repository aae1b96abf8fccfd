#include "worker/model/family.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace phalanx::worker::model {
namespace {

const Family* const kFamilies[] = {&kLlama, &kMistral, &kQwen2, &kQwen3};

}  // namespace

const Family* FindFamily(std::string_view architecture) {
  for (const Family* family : kFamilies) {
    if (architecture == family->architecture) return family;
  }
  return nullptr;
}

const Family* FindFamilyByModelType(std::string_view model_type) {
  for (const Family* family : kFamilies) {
    if (model_type == family->model_type) return family;
  }
  return nullptr;
}

const Family* FindFamilyByGguf(std::string_view gguf_architecture) {
  for (const Family* family : kFamilies) {
    if (family->gguf_architecture != nullptr && gguf_architecture == family->gguf_architecture) return family;
  }
  return nullptr;
}

std::string FamilyNames() {
  std::string names;
  for (const Family* family : kFamilies) absl::StrAppend(&names, names.empty() ? "" : ", ", family->architecture);
  return names;
}

}  // namespace phalanx::worker::model
